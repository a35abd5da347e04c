"""A gate as an IA3 adapter of PEFT, on the attention output projections.

At `post` IA3 multiplies the projection's output, at `pre` its input (`feedforward_modules`), in float32 and
cast back, as the live gate does. `gating.ia3_adapter` reads such a folder again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from truthgate_eval.errors import GateError
from truthgate_eval.export.output import new_folder, write_card
from truthgate_eval.export.projections import GatedProjection, gated_projections
from truthgate_eval.gating.attention_layout import AttentionLayout
from truthgate_eval.gating.gate import Gate
from truthgate_eval.gating.gate_arguments import Modality
from truthgate_eval.gating.ia3_adapter import ADAPTER_WEIGHTS, IA3_SUFFIX, METADATA_KEY, metadata_text

_PREFIX = "base_model.model."  # PEFT's, before the model's own names


def export_adapter(
    model: Any,
    gate: Gate,
    folder: str | Path,
    *,
    record: Mapping[str, Any],
    base_model: str | None,
    modality: Modality = "text",
    layout: AttentionLayout | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a gate as an IA3 adapter: config, weights of a few hundred kilobytes at most, and a model card.

    Args:
        model: The transformers model that is gated, with its weights or a skeleton of it.
        gate: The gate; its shape must be the model's.
        folder: What is written.
        record: `provenance`, for the card and for reading the gate back.
        base_model: The model's hub id, for the adapter's config; None for a model of this machine only.
        modality: `text` marks the adapter as one of a causal language model.
        layout: The model's attention heads, if they are known already.
        overwrite: Replace an earlier export.

    Returns:
        The folder.

    Raises:
        AttentionLayoutError: The model is not decoder-only.
        GateError: The gate does not fit the model, or is no IA3 adapter: a shift, or one of some positions.
        TruthGateError: The folder is not empty, or cannot be written.
    """
    folder = Path(folder)
    if gate.shift is not None:
        raise GateError(
            "a shift adds to heads, and an IA3 adapter only multiplies: use --format checkpoint, which puts "
            "it into the projections' biases"
        )
    projections = gated_projections(model, gate, layout=layout)
    for projection in projections:
        if not isinstance(projection.module, nn.Linear) and type(projection.module).__name__ != "Conv1D":
            raise GateError(
                f"{projection.name} is a {type(projection.module).__name__}, which PEFT's IA3 does not wrap: "
                "use --format checkpoint"
            )
    metadata = {**record, "layers": gate.values.shape[0], "heads": gate.values.shape[1]}
    with new_folder(folder, overwrite=overwrite) as partial:
        _write_config(partial, projections, gate, base_model, modality)
        save_file(
            _vectors(projections),
            partial / ADAPTER_WEIGHTS,
            metadata={"format": "pt", METADATA_KEY: metadata_text(metadata)},
        )
        write_card(
            partial, "A gate as an IA3 adapter", _use(base_model or "BASE_MODEL", modality), record,
            library="peft", base_model=base_model,
        )  # fmt: skip
    return folder


def _write_config(
    folder: Path,
    projections: tuple[GatedProjection, ...],
    gate: Gate,
    base_model: str | None,
    modality: Modality,
) -> None:
    from peft import IA3Config

    target = _pattern([projection.name for projection in projections])
    config = IA3Config(
        task_type="CAUSAL_LM" if modality == "text" else None,
        base_model_name_or_path=base_model,
        target_modules=target,
        # PEFT compares a list with the ends of names, a text with whole names.
        feedforward_modules=target if gate.site == "pre" else [],
        fan_in_fan_out=not isinstance(projections[0].module, nn.Linear),
        inference_mode=True,
    )
    config.save_pretrained(str(folder))


def _pattern(names: list[str]) -> str:
    r"""A regular expression of exactly these names; names that differ in one number share a branch.

    Example:
        >>> print(_pattern(["model.layers.0.attn.o_proj", "model.layers.10.attn.o_proj"]))
        model\.layers\.(0|10)\.attn\.o_proj
    """
    branches: dict[tuple[str, str], list[str]] = {}
    for name in names:
        parts = re.fullmatch(r"(.*?\.)(\d+)(\..*)", name)
        before, number, after = parts.groups() if parts else (name, "", "")
        branches.setdefault((before, after), []).append(number)
    return "|".join(
        f"{re.escape(before)}({'|'.join(numbers)}){re.escape(after)}"
        for (before, after), numbers in branches.items()
    )


def _vectors(projections: tuple[GatedProjection, ...]) -> dict[str, torch.Tensor]:
    """Columns [features, 1] at `post`, rows [1, features] at `pre`."""
    return {
        f"{_PREFIX}{projection.name}{IA3_SUFFIX}": projection.gate.factors.unsqueeze(
            1 if projection.gate.site == "post" else 0
        ).contiguous()
        for projection in projections
    }


def peft_snippet(base_model: str, modality: Modality, adapter: str) -> str:
    """Markdown that shows how PEFT loads an adapter.

    Args:
        base_model: The model's hub id.
        modality: `text` for a causal language model.
        adapter: Arguments of `PeftModel.from_pretrained` that name the adapter, as Python.
    """
    auto = "AutoModelForCausalLM" if modality == "text" else "AutoModelForImageTextToText"
    return (
        "```python\n"
        "from peft import PeftModel\n"
        f"from transformers import {auto}\n\n"
        f'model = {auto}.from_pretrained("{base_model}")\n'
        f"model = PeftModel.from_pretrained(model, {adapter})\n"
        "```\n\n`model.merge_and_unload()` then gives an ordinary model."
    )


def _use(base_model: str, modality: Modality) -> str:
    python = peft_snippet(base_model, modality, '"THIS_FOLDER"')
    if modality == "image":
        return python
    arguments = f"pretrained={base_model},peft=THIS_FOLDER"
    return f"{python}\n\n```\nlm_eval --model hf --model_args {arguments} --tasks ...\n```"
