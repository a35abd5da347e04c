"""The soft gate: g = 1 + lam * norm(S) on every attention head.

Equations 5 and 6 and appendix D of the paper, see `docs/method.md#soft-gate`. A `Gate` is the array of g.
`attach` applies it to a loaded model with hooks, which can be replaced and removed; `fold` multiplies it into
the model's weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.hooks import RemovableHandle

from truthgate_eval.devices import weights_device
from truthgate_eval.errors import GateError, check_choice
from truthgate_eval.gating.attention_layout import (
    AttentionLayout,
    Site,
    check_site,
    find_attention_layout,
    linear_shape,
)
from truthgate_eval.gating.scores import TruthScores

Norm = Literal["minmax", "centered", "zscore", "none"]
NORMS: tuple[Norm, ...] = get_args(Norm)
# The released code divides by (max - min + 1e-6), which makes the norm of a layer of equal scores 0.
_MINMAX_EPS = 1e-6
# Scores are float32: a standard deviation below their rounding error means a layer of equal scores.
_ZSCORE_MIN_STD = 1e-7


@dataclass(frozen=True, eq=False)
class Gate:
    """The factor of every attention head, and the site where it applies.

    Attributes:
        values: float32 [layers, heads]; g of equation 6.
        site: `post` scales each head's slice of the output projection's output, `pre` of its input.
    """

    values: NDArray[np.float32]
    site: Site = "post"

    def __post_init__(self) -> None:
        check_site(self.site)
        object.__setattr__(self, "values", np.asarray(self.values, dtype=np.float32))
        if self.values.ndim != 2 or not np.isfinite(self.values).all():
            raise GateError(f"gate values must be a finite [layers, heads] array, got {self.values.shape}")


def check_norm(norm: str) -> Norm:
    """The norm of that name.

    Raises:
        GateError: There is none.
    """
    return check_choice("norm", norm, NORMS, GateError)


def normalize(scores: NDArray[Any], norm: Norm) -> NDArray[np.float64]:
    """norm(S) of `docs/method.md#soft-gate`, within each layer.

    * `minmax`: (S - min) / (max - min + 1e-6)
    * `centered`: S - mean
    * `zscore`: (S - mean) / standard deviation
    * `none`: S

    A layer of equal scores is normalized to 0 by every norm except `none`.

    Args:
        scores: [layers, heads].
        norm: One of `NORMS`.

    Returns:
        [layers, heads].

    Raises:
        GateError: There is no such norm.

    Example:
        >>> normalize(np.array([[0.5, 0.625, 0.75]]), "centered").tolist()
        [[-0.125, 0.0, 0.125]]
    """
    norm = check_norm(norm)
    scores = np.asarray(scores, dtype=np.float64)
    if norm == "none":
        return scores
    if norm == "minmax":
        low, high = scores.min(axis=1, keepdims=True), scores.max(axis=1, keepdims=True)
        return (scores - low) / (high - low + _MINMAX_EPS)
    centered = scores - scores.mean(axis=1, keepdims=True)
    if norm == "centered":
        return centered
    std = centered.std(axis=1, keepdims=True)
    constant = std < _ZSCORE_MIN_STD
    return np.where(constant, 0.0, centered / np.where(constant, 1.0, std))


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


def _restrict_to_layers(values: NDArray[np.float64], layers: Sequence[int] | None) -> NDArray[np.float32]:
    """Set g = 1 in all other layers."""
    if layers is not None:
        if not layers or min(layers) < 0 or max(layers) >= len(values):
            raise GateError(f"layers {list(layers)} are not all within this model's 0 to {len(values) - 1}")
        others = np.setdiff1d(np.arange(len(values)), np.asarray(layers))
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
        self._hooks: list[_Hook] = []
        self.set(gate)

    def set(self, gate: Gate) -> None:
        """Replace the gate; the model's weights are not changed.

        Raises:
            GateError: The gate's shape is not the model's; the gate before it stays.
        """
        vectors = _feature_vectors(self.layout, gate)
        self.remove()
        self.gate = gate
        for projection, vector in zip(self.layout.projections, vectors, strict=True):
            self._hooks.append(_Hook(projection.module, vector, gate.site))

    def remove(self) -> None:
        """Remove the gate's hooks; the model computes bit for bit what it did without a gate."""
        for hook in self._hooks:
            hook.handle.remove()
        self._hooks = []

    def __enter__(self) -> GateHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class _Hook:
    """A forward hook that multiplies one projection's input or output by its layer's gate."""

    def __init__(self, module: nn.Module, vector: torch.Tensor, site: Site) -> None:
        self.vector = vector.to(weights_device(module))
        self.handle: RemovableHandle
        if site == "pre":
            self.handle = module.register_forward_pre_hook(self.scale_input)
        else:
            self.handle = module.register_forward_hook(self.scale_output)

    def scale(self, x: torch.Tensor) -> torch.Tensor:
        if self.vector.device != x.device:  # the device of offloaded weights is unknown until they run
            self.vector = self.vector.to(x.device)
        # Multiplied in the gate's float32, then cast back to the model's dtype.
        return (x * self.vector).to(x.dtype)

    def scale_input(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return self.scale(args[0]), *args[1:]

    def scale_output(self, _module: nn.Module, _args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return self.scale(output)


def attach(model: Any, gate: Gate, *, layout: AttentionLayout | None = None) -> GateHandle:
    """Gate a loaded model with hooks: x_{l+1} = x_l + concat_h(g[l,h] * o_l[h]) (equation 5).

    Args:
        model: A transformers model; it may be wrapped by PEFT, quantized or dispatched over devices.
        gate: The gate; its shape must be the model's (layers, heads).
        layout: The model's attention heads, if they are known already.

    Raises:
        AttentionLayoutError: The model is not decoder-only.
        GateError: The gate's shape is not the model's; nothing was attached.
    """
    return GateHandle(layout or find_attention_layout(model), gate)


def fold(model: Any, gate: Gate, *, layout: AttentionLayout | None = None) -> None:
    """Multiply the gate into the output projections' weights, which costs nothing per token.

    `post` scales a projection's output features and its bias, `pre` its input features. A folded gate cannot
    be removed.

    Args:
        model: A transformers model.
        gate: The gate; its shape must be the model's (layers, heads).
        layout: The model's attention heads, if they are known already.

    Raises:
        AttentionLayoutError: The model is not decoder-only.
        GateError: The gate's shape is not the model's, or a weight cannot be multiplied in place because it
            is quantized, wrapped by an adapter, or offloaded; nothing was changed.
    """
    layout = layout or find_attention_layout(model)
    vectors = _feature_vectors(layout, gate)
    for projection in layout.projections:
        _check_foldable(projection.name, projection.module)
    for projection, vector in zip(layout.projections, vectors, strict=True):
        module = projection.module
        weight = module.get_parameter("weight")
        vector = vector.to(weight.device)
        # The weight of nn.Linear is (out, in), that of Conv1D (in, out).
        scales_rows = (gate.site == "post") == isinstance(module, nn.Linear)
        _scale_(weight, vector[:, None] if scales_rows else vector)
        if gate.site == "post" and getattr(module, "bias", None) is not None:
            _scale_(module.get_parameter("bias"), vector)


def _scale_(parameter: nn.Parameter, vector: torch.Tensor) -> None:
    with torch.no_grad():
        parameter.copy_((parameter * vector).to(parameter.dtype))


def _check_foldable(name: str, module: nn.Module) -> None:
    plain = linear_shape(module) is not None and not hasattr(module, "base_layer")
    weight = getattr(module, "weight", None)
    if not plain or not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
        raise GateError(
            f"{name} is a {type(module).__name__}: a gate folds only into plain floating-point weights; "
            "merge the adapter first, or use mode=live"
        )
    if weight.is_meta:
        raise GateError(f"{name} is offloaded, so a gate cannot be folded into it; use mode=live")


def _feature_vectors(layout: AttentionLayout, gate: Gate) -> list[torch.Tensor]:
    """Each layer's gate, one value per feature: float32 [heads * width]."""
    if gate.values.shape != layout.shape:
        raise GateError(
            f"the gate has {gate.values.shape[0]} layers x {gate.values.shape[1]} heads, "
            f"the model {layout.shape[0]} x {layout.shape[1]}"
        )
    width = layout.head_width(gate.site)
    return list(torch.from_numpy(np.repeat(gate.values, width, axis=1)))
