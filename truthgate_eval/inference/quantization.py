"""`load_in_4bit` and `load_in_8bit` as the config that transformers takes.

transformers 5 takes these two words, and bitsandbytes' settings beside them, only as a
`BitsAndBytesConfig`.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping
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
