"""The text decoder inside a transformers model: what runs token ids, without a language-model head."""

from __future__ import annotations

from typing import Any

from torch import nn

from truthgate_eval.errors import ModelError, first_line


def find_decoder(model: Any) -> nn.Module:
    """The text decoder of a causal language model or of a vision-language model.

    transformers' `get_decoder` returns the language-model head where a class calls that head `decoder`
    (ModernBERT), and a whole language model with its head where a class wraps one (BLIP-2). The first is
    replaced by the class's base model, the second asked again.

    Args:
        model: A transformers model; it may be wrapped by PEFT or dispatched over devices.

    Raises:
        ModelError: The model has no decoder.
    """
    try:
        found = model.get_decoder()
        if not _has_layers(found):
            found = getattr(model, model.base_model_prefix)
        while (inner := _inner_model(found)) is not found:
            found = inner
    except (AttributeError, NotImplementedError) as error:
        raise ModelError(f"{type(model).__name__} has no text decoder: {first_line(error)}") from error
    if not isinstance(found, nn.Module):
        raise ModelError(f"{type(model).__name__} has no text decoder: get_decoder() gives {found!r}")
    return found


def _inner_model(model: Any) -> Any:
    """The model inside a language model with a head; the model itself where there is none inside."""
    inner = model.get_decoder() if hasattr(model, "get_decoder") else model
    if inner is model and getattr(model, "get_output_embeddings", lambda: None)() is not None:
        inner = getattr(model, "model", model)
    return inner if _has_layers(inner) else model


def _has_layers(module: Any) -> bool:
    """Whether a module contains a list of layers, as a decoder does and a language-model head does not."""
    return isinstance(module, nn.Module) and any(
        isinstance(child, nn.ModuleList) for child in module.modules()
    )
