"""PEFT's wrappers around a model, and adapters in them that change a pass from outside of the text decoder.

A LoRA lives in the decoder's linear maps: the decoder alone computes what the tuned model computes. Other
adapters act in the wrapper's own `forward`, before the decoder runs. Where there is one of these, prefixes
are not shared, and every sequence runs through the wrapper.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any


def forward_parameters(model: Any) -> Mapping[str, inspect.Parameter]:
    """What a model's `forward` takes; a PEFT wrapper's own signature takes anything."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inspect.signature(base.forward).parameters


def last_logits_only(model: Any) -> dict[str, int]:
    """The argument that keeps a model from computing logits of all positions, where it has one."""
    return {"logits_to_keep": 1} if "logits_to_keep" in forward_parameters(model) else {}


def find_outer_adapter(model: Any) -> str | None:
    """What an adapter does outside of the text decoder, for a message; None if no adapter does.

    The self check cannot be relied on to find these: an activated LoRA does nothing to its test prompts.

    Args:
        model: A transformers model, which PEFT may have wrapped.
    """
    configs = getattr(model, "peft_config", None)
    for config in configs.values() if isinstance(configs, dict) else ():
        kind = getattr(config.peft_type, "value", config.peft_type)
        if config.is_prompt_learning:
            return f"the {kind} adapter puts virtual tokens before the prompt"
        if getattr(config, "alora_invocation_tokens", None):
            return f"the activated {kind} adapter begins where its invocation tokens are"
        if kind == "XLORA":
            return f"the {kind} adapter mixes its experts in a pass of its own"
        if kind == "POLY":
            return f"the {kind} adapter mixes its modules by task"
    return None
