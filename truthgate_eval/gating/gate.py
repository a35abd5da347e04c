"""Gates: a factor, and perhaps a shift, for every attention head.

`make_gate` makes the paper's soft gate g = 1 + lam * norm(S), equations 5 and 6 and appendix D, see
`docs/method.md#soft-gate`; `selection` and `shift` make the others. `attach` applies a gate to a loaded model
with hooks, which can be replaced and removed; `fold` puts it into the model's weights.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from truthgate_eval.errors import GateError
from truthgate_eval.gating.attention_layout import (
    AttentionLayout,
    Site,
    check_site,
    find_attention_layout,
)
from truthgate_eval.gating.layer_gate import LayerGate, LayerGateHook, check_foldable, forget_compiled_code
from truthgate_eval.gating.normalization import Norm, normalize
from truthgate_eval.gating.positions import GatedPositions, Positions, check_positions
from truthgate_eval.gating.scores import TruthScores

log = logging.getLogger(__name__)

# The paper's factors stay below 5: lam is at most 7.5, and accuracies above chance differ by less than 0.5.
_USUAL_FACTOR = 100.0


@dataclass(frozen=True, eq=False)
class Gate:
    """What changes every attention head, and where.

    Attributes:
        values: float32 [layers, heads] factors; g of equation 6.
        site: `post` scales each head's slice of the output projection's output, `pre` of its input.
        shift: float32 [layers, heads, width], added to each head's slice of the output projection's input
            after its factor; None for no shift. It needs site `pre`. Of a layer with narrower heads than
            `width` only the first features count.
        positions: The tokens whose activations are changed; `fold` can only do `all`.

    Raises:
        GateError: The arrays do not fit each other, or the shift the site.
    """

    values: NDArray[np.float32]
    site: Site = "post"
    shift: NDArray[np.float32] | None = None
    positions: Positions = "all"

    def __post_init__(self) -> None:
        check_site(self.site)
        check_positions(self.positions)
        object.__setattr__(self, "values", np.asarray(self.values, dtype=np.float32))
        if self.values.ndim != 2 or not np.isfinite(self.values).all():
            raise GateError(f"gate values must be a finite [layers, heads] array, got {self.values.shape}")
        if self.shift is None:
            return
        if self.site != "pre":
            raise GateError("a shift is added to the output projection's input: use site=pre")
        shift = np.asarray(self.shift, dtype=np.float32)
        object.__setattr__(self, "shift", shift)
        if shift.ndim != 3 or shift.shape[:2] != self.values.shape or not np.isfinite(shift).all():
            raise GateError(
                f"a shift must be a finite [layers, heads, width] array for {self.values.shape} heads, "
                f"got {shift.shape}"
            )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all of it; gates with equal fingerprints change a model alike."""
        found = hashlib.sha256(f"{self.site} {self.positions} {self.values.shape}".encode())
        found.update(self.values.tobytes())
        if self.shift is not None:
            found.update(f"{self.shift.shape}".encode() + self.shift.tobytes())
        return found.hexdigest()


def make_gate(
    scores: TruthScores | NDArray[Any],
    *,
    lam: float,
    norm: Norm,
    site: Site = "post",
    layers: Sequence[int] | None = None,
) -> Gate:
    """The gate g = 1 + lam * norm(S) of equation 6.

    Args:
        scores: Truth scores, [layers, heads].
        lam: Strength; 0 leaves the model unchanged.
        norm: Normalization of the scores within each layer, one of `NORMS`.
        site: Where the gate acts, `post` or `pre`.
        layers: The layers to gate (0-based); the others keep g = 1. None gates all.

    Raises:
        GateError: An argument has no such value, or the model has no such layers.

    Example:
        >>> gate = make_gate(np.array([[0.5, 0.625, 0.75]]), lam=2.0, norm="centered")
        >>> gate.values.tolist()
        [[0.75, 1.0, 1.25]]
    """
    if not math.isfinite(lam):
        raise GateError(f"lam must be a finite number, got {lam}")
    array = scores.scores if isinstance(scores, TruthScores) else scores
    return Gate(_restrict_to_layers(1.0 + lam * normalize(array, norm), layers), site)


def random_gate(
    shape: tuple[int, int], *, seed: int, site: Site = "post", layers: Sequence[int] | None = None
) -> Gate:
    """The random gate of the paper's ablation: g is uniform on [0, 2], independently for each head.

    Args:
        shape: (layers, heads) of the model.
        seed: Determines the gate.
        site: As in `make_gate`.
        layers: As in `make_gate`.
    """
    draw = np.random.default_rng(seed).uniform(-1.0, 1.0, size=shape)
    return Gate(_restrict_to_layers(1.0 + draw, layers), site)


def warn_of_extreme(gate: Gate) -> Gate:
    """The gate, after a warning if it multiplies a head by far more than any published one does."""
    largest = float(np.abs(gate.values).max())
    if largest > _USUAL_FACTOR:
        log.warning(
            "the gate multiplies heads by up to %.3g, and the paper's gates stay below 5: check lam", largest
        )
    return gate


def check_layers(layers: Sequence[int] | None, count: int) -> Sequence[int]:
    """The layers of a model that are gated.

    Args:
        layers: Their numbers (0-based); None for all.
        count: How many layers the model has.

    Raises:
        GateError: The model has no such layers.
    """
    if layers is None:
        return range(count)
    if not layers or min(layers) < 0 or max(layers) >= count:
        raise GateError(f"layers {list(layers)} are not all within this model's 0 to {count - 1}")
    return layers


def _restrict_to_layers(values: NDArray[np.float64], layers: Sequence[int] | None) -> NDArray[np.float32]:
    """Set g = 1 in all other layers."""
    if layers is not None:
        others = np.setdiff1d(np.arange(len(values)), np.asarray(check_layers(layers, len(values))))
        values = values.copy()
        values[others] = 1.0
    return values.astype(np.float32)


class GateHandle:
    """A gate that is attached to a model: `set` replaces it, `remove` detaches it.

    Also a context manager that removes the gate at the end of the block.

    Attributes:
        layout: The model's attention heads.
        gate: The gate that is attached, or was last.
    """

    def __init__(self, layout: AttentionLayout, gate: Gate) -> None:
        self.layout = layout
        self._hooks: list[LayerGateHook] = []
        self._positions: GatedPositions | None = None
        self.set(gate)

    def set(self, gate: Gate) -> None:
        """Replace the gate; the model's weights are not changed.

        Raises:
            GateError: The gate's shape is not the model's; the gate before it stays.
        """
        of_layers = layer_gates(self.layout, gate)
        self.remove()
        self.gate = gate
        if gate.positions != "all":
            self._positions = GatedPositions(self.layout.decoder, gate.positions)
        for projection, layer_gate in zip(self.layout.projections, of_layers, strict=True):
            self._hooks.append(LayerGateHook(projection.module, layer_gate, self._positions))
        forget_compiled_code()

    def scoring(self, after_first: int | Sequence[int]) -> AbstractContextManager[None]:
        """In this block, passes hold a prompt and a continuation that is scored: `GatedPositions.scoring`.

        Where all tokens are gated, it changes nothing.
        """
        return nullcontext() if self._positions is None else self._positions.scoring(after_first)

    @property
    def is_attached(self) -> bool:
        """Whether the model computes with the gate: false after `remove`."""
        return bool(self._hooks)

    def remove(self) -> None:
        """Remove the gate's hooks; the model computes bit for bit what it did without a gate."""
        for hook in self._hooks:
            hook.handle.remove()
        self._hooks = []
        if self._positions is not None:
            self._positions.remove()
            self._positions = None
        forget_compiled_code()

    def __enter__(self) -> GateHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def attach(model: Any, gate: Gate, *, layout: AttentionLayout | None = None) -> GateHandle:
    """Gate a loaded model with hooks: x_{l+1} = x_l + concat_h(g[l,h] * o_l[h]) (equation 5).

    Args:
        model: A transformers model, also wrapped by PEFT, quantized, compiled or dispatched over devices.
        gate: The gate; its shape must be the model's (layers, heads).
        layout: The model's attention heads, if they are known already.

    Raises:
        AttentionLayoutError: The model is not decoder-only.
        GateError: The gate's shape is not the model's; nothing was attached.
    """
    return GateHandle(layout or find_attention_layout(model), gate)


def fold(model: Any, gate: Gate, *, layout: AttentionLayout | None = None) -> None:
    """Put the gate into the output projections' weights, which costs nothing per token.

    `post` scales a projection's output features and its bias, `pre` its input features. A shift s adds W_o s
    to the bias. An `nn.Linear` without a bias gets one; the model's config does not say so
    (`attention_bias` and its like stay as they are), so `from_pretrained` of a saved model leaves such a bias
    out. A folded gate cannot be removed.

    Args:
        model: A transformers model.
        gate: The gate; its shape must be the model's (layers, heads).
        layout: The model's attention heads, if they are known already.

    Raises:
        AttentionLayoutError: The model is not decoder-only.
        GateError: The gate's shape is not the model's, it does not change all positions, or a weight cannot
            be multiplied in place because it is quantized, wrapped by an adapter, or offloaded; nothing was
            changed.
    """
    if gate.positions != "all":
        raise GateError(f"positions={gate.positions} cannot be folded into weights: use mode=live")
    layout = layout or find_attention_layout(model)
    of_layers = layer_gates(layout, gate)
    for projection in layout.projections:
        check_foldable(projection.name, projection.module)
    for projection, layer_gate in zip(layout.projections, of_layers, strict=True):
        layer_gate.fold(projection.module)


def layer_gates(layout: AttentionLayout, gate: Gate) -> list[LayerGate]:
    """Each layer's part of a gate, in the order of `layout.projections`.

    Args:
        layout: The model's attention heads.
        gate: The gate.

    Raises:
        GateError: The gate's shape is not the model's.
    """
    if gate.values.shape != layout.shape:
        raise GateError(
            f"the gate has {gate.values.shape[0]} layers x {gate.values.shape[1]} heads, "
            f"the model {layout.shape[0]} x {layout.shape[1]}"
        )
    widths = layout.head_widths(gate.site)
    if gate.shift is not None and gate.shift.shape[2] != max(widths):
        raise GateError(
            f"the shift's heads have {gate.shift.shape[2]} features, this model's have {max(widths)}"
        )
    gates = []
    for layer, width in enumerate(widths):
        factors = torch.from_numpy(np.repeat(gate.values[layer], width))
        shift = None if gate.shift is None else torch.from_numpy(gate.shift[layer, :, :width].reshape(-1))
        gates.append(LayerGate(gate.site, factors, shift))
    return gates
