"""Quantized models: `load_in_4bit` and `load_in_8bit` as transformers takes them, and the weights' bytes.

transformers 5 takes these two words, and bitsandbytes' settings beside them, only as a
`BitsAndBytesConfig`.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from transformers import BitsAndBytesConfig

from truthgate_eval.errors import ModelError, check_choice, first_line

_FLAGS = ("load_in_4bit", "load_in_8bit")
# The flags and their settings: bnb_4bit_quant_type, llm_int8_threshold, ...
BITSANDBYTES_OPTIONS = frozenset(inspect.signature(BitsAndBytesConfig).parameters) - {"kwargs"}


def bitsandbytes_config(
    options: Mapping[str, Any], dtype: torch.dtype | Literal["auto"]
) -> BitsAndBytesConfig | None:
    """The config of a model that is quantized while it is loaded; None if it is not.

    Args:
        options: Those of `BITSANDBYTES_OPTIONS` that were given.
        dtype: The model's data type, in which 4-bit weights are multiplied unless `bnb_4bit_compute_dtype`
            says otherwise; bfloat16 for `auto`.

    Raises:
        ModelError: An option has no such value, or needs another one, or bitsandbytes is not installed.
    """
    flags = {name: options.get(name) or False for name in _FLAGS}
    for name, value in flags.items():
        if value not in (True, False):
            raise ModelError(f"{name}={value} is neither True nor False")
    settings = {name: value for name, value in options.items() if name not in _FLAGS}
    chosen = next((name for name, value in flags.items() if value), None)
    if all(flags.values()):
        raise ModelError("load_in_4bit and load_in_8bit exclude each other")
    if chosen is None:
        if settings:
            raise ModelError(f"{next(iter(settings))} needs load_in_4bit=True or load_in_8bit=True")
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"{chosen} needs the package bitsandbytes: pip install bitsandbytes")
    if "bnb_4bit_quant_type" in settings:  # transformers finds out while it quantizes
        check_choice("bnb_4bit_quant_type", settings["bnb_4bit_quant_type"], ("nf4", "fp4"), ModelError)
    compute_dtype = settings.pop("bnb_4bit_compute_dtype", torch.bfloat16 if dtype == "auto" else dtype)
    if isinstance(compute_dtype, str):
        compute_dtype = compute_dtype.removeprefix("torch.")
    try:
        return BitsAndBytesConfig(
            **{name: bool(value) for name, value in flags.items()},
            bnb_4bit_compute_dtype=compute_dtype,
            **settings,
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"bitsandbytes takes no such options: {first_line(error)}") from error


def stored_tensors(model: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of a model's state dict, with the plain tensors that quantized weights consist of.

    `state_dict()` of bitsandbytes 0.50 changes 4-bit weights of a model that has run on a CPU with AVX-512
    for bfloat16: it undoes their packing, but leaves their scales transposed. Here they stay as they were.

    Args:
        model: A transformers model, also quantized by bitsandbytes or torchao.

    Yields:
        Names and values; most values are tensors.
    """
    states = [getattr(parameter, "quant_state", None) for parameter in model.parameters()]
    packed = [
        (parameter, parameter.data, state, dict(vars(state)))
        for parameter, state in zip(model.parameters(), states, strict=True)
        if getattr(state, "packing_format_for_cpu", False)
    ]
    values = model.state_dict()
    for parameter, data, state, attributes in packed:
        parameter.data = data
        vars(state).clear()
        vars(state).update(attributes)
    for name, value in values.items():
        yield from _plain_parts(name, value)


def _plain_parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A subclass of Tensor, such as torchao's, as the tensors inside; another value as it is."""
    if not isinstance(value, torch.Tensor) or not hasattr(value, "__tensor_flatten__"):
        yield name, value
        return
    parts, _ = value.__tensor_flatten__()
    for part in parts:
        yield from _plain_parts(f"{name}.{part}", getattr(value, part))
