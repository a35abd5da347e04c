"""A gate folded into a checkpoint on disk: the same files, with other numbers in the output projections.

The weights' files are copied, and in the copies only the projections' bytes are replaced. At no time is more
than one projection in memory.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.filesize import decimal
from torch import nn

from truthgate_eval.errors import GateError, ModelError, TruthGateError
from truthgate_eval.export.checkpoint_keys import find_checkpoint_keys
from truthgate_eval.export.output import new_folder, write_card
from truthgate_eval.export.projections import GatedProjection, gated_projections
from truthgate_eval.export.safetensors_file import FLOATS, SafetensorsFile, read_header, write_tensor
from truthgate_eval.export.source import QUANTIZED, other_files, weight_files
from truthgate_eval.gating.attention_layout import AttentionLayout
from truthgate_eval.gating.gate import Gate


def export_checkpoint(
    source: str | Path,
    model: Any,
    gate: Gate,
    folder: str | Path,
    *,
    record: Mapping[str, Any],
    base_model: str | None = None,
    layout: AttentionLayout | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint with a gate folded in; config, tokenizer and processor are copied as they are.

    Products are computed in float32 and rounded once to the checkpoint's dtype, as `gating.gate.fold` does.

    Args:
        source: The checkpoint's folder, with safetensors.
        model: The model of that checkpoint, with its weights or a skeleton of it.
        gate: The gate; its shape must be the model's. A shift needs projections with a bias.
        folder: What is written.
        record: `provenance`, for the model card.
        base_model: The model's hub id, if it has one.
        layout: The model's attention heads, if they are known already.
        overwrite: Replace an earlier export.

    Returns:
        The folder.

    Raises:
        AttentionLayoutError: The model is not decoder-only.
        GateError: The gate does not fit the model or cannot be folded.
        ModelError: The checkpoint is quantized, damaged, has no safetensors, or names its weights unlike
            the model.
        TruthGateError: The folder is not empty, or cannot be written.
    """
    source, folder = Path(source), Path(folder)
    _check_plain(model.config)
    projections = gated_projections(model, gate, layout=layout)
    if gate.shift is not None:
        _check_biases(projections, model)
    files = [read_header(path) for path in weight_files(source)]
    places = _find_projections(model, projections, files)
    with new_folder(folder, overwrite=overwrite, source=source) as partial:
        _check_space(partial, files)
        for path in other_files(source):
            target = partial / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
        for file in files:
            shutil.copyfile(file.path, partial / file.path.name)
        for projection in projections:
            _fold(projection, places[projection.name], partial)
        write_card(
            partial, "A checkpoint with a gate folded in", _USE, record,
            library="transformers", base_model=base_model,
        )  # fmt: skip
    return folder


# For each parameter of a projection (`weight`, perhaps `bias`) its file and its name there.
_Places = dict[str, tuple[SafetensorsFile, str]]


def _find_projections(
    model: Any, projections: tuple[GatedProjection, ...], files: list[SafetensorsFile]
) -> dict[str, _Places]:
    """Where each projection's parameters are.

    Raises:
        ModelError: One is not in the checkpoint, has another shape, or is quantized.
    """
    file_of: dict[str, SafetensorsFile] = {}
    for file in files:
        for key in file.entries:
            if key in file_of:
                raise ModelError(
                    f"{key} is in {file_of[key].path.name} and in {file.path.name}: which one counts?"
                )
            file_of[key] = file
    wanted = {
        f"{projection.name}.{name}": parameter
        for projection in projections
        for name, parameter in projection.module.named_parameters(recurse=False)
    }
    places: dict[str, _Places] = defaultdict(dict)
    for name, key in find_checkpoint_keys(model, wanted, file_of).items():
        entry = file_of[key].entries[key]
        if entry.dtype not in FLOATS:
            raise ModelError(f"{key} has dtype {entry.dtype}: {QUANTIZED}")
        if entry.shape != wanted[name].shape:
            raise ModelError(
                f"{key} has shape {entry.shape}, and {name} of {type(model).__name__} "
                f"{tuple(wanted[name].shape)}: is this the checkpoint of that config?"
            )
        module, _, parameter_name = name.rpartition(".")
        places[module][parameter_name] = file_of[key], key
    return places


def _fold(projection: GatedProjection, places: _Places, folder: Path) -> None:
    """Fold one layer's gate in the copies of its files."""
    module = nn.Module.__new__(type(projection.module))
    nn.Module.__init__(module)
    module.register_parameter("bias", None)
    for name, (file, key) in places.items():
        module.register_parameter(name, nn.Parameter(file.read(key), requires_grad=False))
    projection.gate.fold(module)
    for name, (file, key) in places.items():
        with torch.no_grad():
            write_tensor(folder / file.path.name, file.entries[key], module.get_parameter(name))


_USE = (
    "It loads like the model that it was made from, in every engine, and needs no code beside it: "
    '`AutoModel....from_pretrained("THIS_FOLDER")`, `lm_eval --model hf --model_args pretrained=THIS_FOLDER`.'
)


def _check_plain(config: Any) -> None:
    text = config.get_text_config(decoder=True)
    if any(getattr(found, "quantization_config", None) is not None for found in (config, text)):
        raise ModelError(f"the checkpoint is quantized: {QUANTIZED}")


def _check_biases(projections: tuple[GatedProjection, ...], model: Any) -> None:
    missing = next((p.name for p in projections if getattr(p.module, "bias", None) is None), None)
    if missing is not None:
        raise GateError(
            f"a shift folds into the bias of W_o, and {missing} of {type(model).__name__} has none by its "
            "config, so nothing would load it: gate the model live, with gated_hf or gated_vlm"
        )


def _check_space(folder: Path, files: list[SafetensorsFile]) -> None:
    needed = sum(file.path.stat().st_size for file in files)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise TruthGateError(
            f"{folder.parent} has {decimal(free)} free, and the checkpoint takes {decimal(needed)}: "
            "choose another --output, or use --format peft"
        )
