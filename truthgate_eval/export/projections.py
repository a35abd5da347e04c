"""The output projections of a gated model by their full names, with each one's part of the gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from truthgate_eval.errors import GateError
from truthgate_eval.gating.attention_layout import AttentionLayout, find_attention_layout
from truthgate_eval.gating.gate import Gate, layer_gates
from truthgate_eval.gating.layer_gate import LayerGate, check_foldable


@dataclass(frozen=True)
class GatedProjection:
    """One layer's output projection, and what is done to it.

    Attributes:
        name: Dotted path below the model, such as `model.layers.3.self_attn.o_proj`.
        module: The projection: `nn.Linear`, or transformers' `Conv1D`.
        gate: The layer's part of the gate.
    """

    name: str
    module: nn.Module
    gate: LayerGate


def gated_projections(
    model: Any, gate: Gate, *, layout: AttentionLayout | None = None
) -> tuple[GatedProjection, ...]:
    """All output projections of a model with their parts of a gate, in layer order.

    Args:
        model: A transformers model without adapters; `build_skeleton` makes one without weights.
        gate: The gate; its shape must be the model's.
        layout: The model's attention heads, if they are known already.

    Raises:
        AttentionLayoutError: The model is not decoder-only.
        GateError: The gate's shape is not the model's, it does not change all positions, or a projection is
            no plain linear map.
    """
    if gate.positions != "all":
        raise GateError(
            f"positions={gate.positions} cannot be exported, since weights act on every token: gate the "
            "model live, with gated_hf or gated_vlm"
        )
    layout = layout or find_attention_layout(model)
    names = {module: name for name, module in model.named_modules()}
    found = []
    for projection, layer_gate in zip(layout.projections, layer_gates(layout, gate), strict=True):
        check_foldable(projection.name, projection.module)
        found.append(GatedProjection(names[projection.module], projection.module, layer_gate))
    return tuple(found)
