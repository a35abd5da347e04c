"""The soft gate: g = 1 + lam * norm(S) on every attention head.

METHOD.md, "Soft gate" (the paper's equations 5 and 6, appendix D). A `Gate` is the array
of g; `attach` applies it to a loaded model in a way that can be changed and taken back,
`fold` writes it into the model's weights for good.
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

from truthgate_eval.errors import GateError
from truthgate_eval.gating.attention_layout import (
    AttentionLayout,
    check_site,
    find_attention_layout,
    linear_shape,
)
from truthgate_eval.gating.scores import TruthScores

Norm = Literal["minmax", "centered", "zscore", "none"]
NORMS: tuple[str, ...] = get_args(Norm)
# The released code divides by (max - min + 1e-6); a layer of equal scores so gets 0.
_MINMAX_EPS = 1e-6


@dataclass(frozen=True, eq=False)
class Gate:
    """What to multiply each head by, and where.

    Attributes:
        values: float32 [layers, heads]; g of equation 6.
        site: `post` scales slices of the output projection's output, `pre` its input heads.
    """

    values: NDArray[np.float32]
    site: str = "post"

    def __post_init__(self) -> None:
        check_site(self.site)
        object.__setattr__(self, "values", np.asarray(self.values, dtype=np.float32))
        if self.values.ndim != 2 or not np.isfinite(self.values).all():
            raise GateError(f"gate values must be a finite [layers, heads] array, got {self.values.shape}")


def normalize(scores: NDArray[Any], norm: str) -> NDArray[np.float64]:
    """norm(S) of METHOD.md, within each layer: [layers, heads] in, [layers, heads] out.

    A layer whose scores are all equal gets 0 from every norm but `none`.
    """
    if norm not in NORMS:
        raise GateError(f"unknown norm {norm!r}: expected one of {', '.join(NORMS)}")
    scores = np.asarray(scores, dtype=np.float64)
    if norm == "none":
        return scores
    if norm == "minmax":
        low, high = scores.min(axis=1, keepdims=True), scores.max(axis=1, keepdims=True)
        return (scores - low) / (high - low + _MINMAX_EPS)
    centered = scores - scores.mean(axis=1, keepdims=True)
    if norm == "centered":
        return centered
    spread = centered.std(axis=1, keepdims=True)
    # Scores are float32: a spread below their rounding is a layer of equal scores.
    flat = spread < 1e-7
    return np.where(flat, 0.0, centered / np.where(flat, 1.0, spread))


def make_gate(
    scores: TruthScores | NDArray[Any],
    *,
    lam: float,
    norm: str,
    site: str = "post",
    layers: Sequence[int] | None = None,
) -> Gate:
    """The gate g = 1 + lam * norm(S) of equation 6.

    Args:
        scores: Truth scores, [layers, heads].
        lam: Strength; 0 leaves the model as it is.
        norm: One of `NORMS`.
        site: Where the gate acts, `post` or `pre`.
        layers: The layers to gate (0-based); the others keep g = 1. None gates all.
    """
    if not math.isfinite(lam):
        raise GateError(f"lam must be a finite number, got {lam}")
    array = scores.scores if isinstance(scores, TruthScores) else scores
    return Gate(_only(1.0 + lam * normalize(array, norm), layers), site)


def random_gate(
    shape: tuple[int, int], *, seed: int, site: str = "post", layers: Sequence[int] | None = None
) -> Gate:
    """The ablation's gate: g - 1 is drawn once, uniformly from [-1, 1], for each head."""
    draw = np.random.default_rng(seed).uniform(-1.0, 1.0, size=shape)
    return Gate(_only(1.0 + draw, layers), site)


def _only(values: NDArray[np.float64], layers: Sequence[int] | None) -> NDArray[np.float32]:
    if layers is not None:
        if not layers or min(layers) < 0 or max(layers) >= len(values):
            raise GateError(f"layers {list(layers)} are not all within this model's 0 to {len(values) - 1}")
        rest = np.setdiff1d(np.arange(len(values)), np.asarray(layers))
        values = values.copy()
        values[rest] = 1.0
    return values.astype(np.float32)


class GateHandle:
    """A gate that is live on a model: change it with `set`, take it off with `remove`.

    Also a context manager that takes the gate off at the end of the block.
    """

    def __init__(self, anatomy: AttentionLayout, gate: Gate) -> None:
        self.anatomy = anatomy
        self._hooks: list[_Hook] = []
        self.set(gate)

    def set(self, gate: Gate) -> None:
        """Replace the gate on the loaded model; the weights are not touched."""
        vectors = _head_vectors(self.anatomy, gate)
        self.remove()
        self.gate = gate
        for projection, vector in zip(self.anatomy.projections, vectors, strict=True):
            self._hooks.append(_Hook(projection.module, vector, gate.site))

    def remove(self) -> None:
        """Take the gate off; the model is bit for bit what it was."""
        for hook in self._hooks:
            hook.handle.remove()
        self._hooks = []

    def __enter__(self) -> GateHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class _Hook:
    """Multiplies one projection's input or output by its layer's gate."""

    def __init__(self, module: nn.Module, vector: torch.Tensor, site: str) -> None:
        self.vector = vector.to(_device(module))
        if site == "pre":
            self.handle = module.register_forward_pre_hook(self.before)
        else:
            self.handle = module.register_forward_hook(self.after)

    def scale(self, x: torch.Tensor) -> torch.Tensor:
        if self.vector.device != x.device:  # weights that are offloaded show no device until they run
            self.vector = self.vector.to(x.device)
        # The gate is float32: multiply there, and give back what the model computes in.
        return (x * self.vector).to(x.dtype)

    def before(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return self.scale(args[0]), *args[1:]

    def after(self, _module: nn.Module, _args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return self.scale(output)


def attach(model: Any, gate: Gate, *, anatomy: AttentionLayout | None = None) -> GateHandle:
    """Gate a loaded model, live: x_{l+1} = x_l + concat_h(g[l,h] * o_l[h]) (equation 5).

    Args:
        model: A transformers model; PEFT, quantised and multi-device ones work too.
        gate: The gate; its shape must be the model's (layers, heads).
        anatomy: The model's anatomy, if it is known already.

    Raises:
        GateError: The gate's shape is not the model's; nothing was attached.
    """
    return GateHandle(anatomy or find_attention_layout(model), gate)


def fold(model: Any, gate: Gate, *, anatomy: AttentionLayout | None = None) -> None:
    """Multiply the gate into the projections' weights: no cost per token, and no way back.

    `post` scales the projection's output features and its bias, `pre` its input features.

    Raises:
        GateError: A projection's weight cannot be multiplied in place (quantised, wrapped
            by an adapter, or offloaded); nothing was changed.
    """
    anatomy = anatomy or find_attention_layout(model)
    vectors = _head_vectors(anatomy, gate)
    for projection in anatomy.projections:
        _check_foldable(projection.name, projection.module)
    for projection, vector in zip(anatomy.projections, vectors, strict=True):
        module = projection.module
        weight = module.get_parameter("weight")
        vector = vector.to(weight.device)
        # nn.Linear keeps its weight as (out, in), Conv1D as (in, out).
        rows = (gate.site == "post") == isinstance(module, nn.Linear)
        _scale_(weight, vector[:, None] if rows else vector)
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


def _head_vectors(anatomy: AttentionLayout, gate: Gate) -> list[torch.Tensor]:
    """Each layer's gate, spread over its heads' features: float32 [heads * width]."""
    if gate.values.shape != anatomy.shape:
        raise GateError(
            f"the gate has {gate.values.shape[0]} layers x {gate.values.shape[1]} heads, "
            f"the model {anatomy.shape[0]} x {anatomy.shape[1]}"
        )
    width = anatomy.head_width(gate.site)
    return list(torch.from_numpy(np.repeat(gate.values, width, axis=1)))


def _device(module: nn.Module) -> torch.device:
    device = next(module.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device
