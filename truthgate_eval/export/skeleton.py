"""A model's class and shapes without its weights, on which `find_attention_layout` works.

The layout is found by a pass over two tokens, so the model must compute, which one on torch's meta device
does not. Here every weight is one vector that is repeated over the weight's other dimensions without a copy:
a model of any size takes as much memory as its biases, and its config is all that has to be downloaded.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch import nn

from truthgate_eval.errors import ModelError, first_line
from truthgate_eval.gating.gate_arguments import Modality

_AUTO: dict[Modality, Any] = {
    "text": transformers.AutoModelForCausalLM,
    "image": transformers.AutoModelForImageTextToText,
}


def build_skeleton(config: Any, modality: Modality, *, trust_remote_code: bool = False) -> Any:
    """A model of a config whose weights take no memory.

    Args:
        config: Of the model; of a quantized one the plain model is built.
        modality: `text` for the class that lm-eval's `hf` loads, `image` for an image-text-to-text class.
        trust_remote_code: Run code that comes with the config.

    Raises:
        ModelError: transformers has no class for the config, or the class cannot be built.

    Example:
        >>> config = transformers.LlamaConfig(num_hidden_layers=2, vocab_size=1000)
        >>> model = build_skeleton(config, "text")
        >>> sum(p.numel() for p in model.parameters()) > 4e8
        True
        >>> max(p.untyped_storage().nbytes() for p in model.parameters())
        44032
    """
    config = copy.deepcopy(config)
    config._experts_implementation = "eager"  # the faster ones refuse weights that repeat a vector
    try:
        # Buffers hold what a class computes, such as the frequencies of rotary embeddings.
        with init_empty_weights(include_buffers=False):
            model = _AUTO[modality].from_config(
                config, dtype=torch.float32, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # a model's own code may fail in any way
        raise ModelError(f"a {config.model_type} model cannot be built: {first_line(error)}") from error
    _fill(model)
    return model.eval()


def _fill(model: nn.Module) -> None:
    """Give every weight random values that repeat along all of its dimensions but the last."""
    generator = torch.Generator().manual_seed(0)
    made: dict[nn.Parameter, nn.Parameter] = {}  # tied weights are one parameter in several places
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter not in made:
                values = torch.randn(parameter.shape[-1:], generator=generator)
                # Scales of normalizations, and biases, are near 1; products keep the size of their input.
                values = 1 + 0.1 * values if parameter.ndim < 2 else values / max(1, values.numel()) ** 0.5
                filled = values.expand(parameter.shape)
                made[parameter] = nn.Parameter(filled, requires_grad=False)
            module.register_parameter(name, made[parameter])
