"""Where a model's parameters are in its checkpoint, whose names are often those of an older class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from truthgate_eval.errors import ModelError

_WAY_OUT = "load the model, fold with mode=folded and save it, or use --format peft"


def find_checkpoint_keys(model: Any, parameters: Iterable[str], keys: Iterable[str]) -> dict[str, str]:
    """The checkpoint's name of each of some parameters, by transformers' own renaming.

    Args:
        model: A transformers model that the checkpoint is one of; its weights are not looked at.
        parameters: Names of parameters, as in its state dict.
        keys: All names in the checkpoint.

    Raises:
        ModelError: A parameter is not in the checkpoint, is there twice, or is computed from several tensors.
    """
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    prefix, state = model.base_model_prefix, model.state_dict()
    wanted = list(parameters)
    found: dict[str, list[str]] = {name: [] for name in wanted}
    for key in keys:
        name, converter = rename_source_key(key, renamings, converters, prefix, state)
        if name not in state and key in state:  # it has its present name already
            name, converter = rename_source_key(key, [], [], prefix, state)
        if name not in found:
            continue
        if converter is not None:
            raise ModelError(f"{name} is computed from {key} and others when it is loaded: {_WAY_OUT}")
        found[name].append(key)
    for name, candidates in found.items():
        if len(candidates) != 1:
            what = "no tensor" if not candidates else f"several tensors ({', '.join(candidates)})"
            raise ModelError(f"the checkpoint has {what} for {name} of {type(model).__name__}: {_WAY_OUT}")
    return {name: candidates[0] for name, candidates in found.items()}
