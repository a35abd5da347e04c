"""Shifting heads along a direction: inference-time intervention (ITI, Li et al. 2023, arXiv 2306.03341).

The heads with the highest scores get alpha * sigma * direction added to their output, which is their slice of
the input of the output projection W_o. The direction has length 1, and sigma is the standard deviation of the
activations along it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.errors import GateError, check_choice
from truthgate_eval.gating.gate import Gate, check_layers
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.gating.selection import rank_heads

Direction = Literal["probe", "means"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
# The artifact's arrays with each direction and with the standard deviation along it.
_ARRAYS: dict[Direction, tuple[str, str]] = {
    "probe": ("probe_weight", "activation_std"),
    "means": ("mean_difference", "mean_difference_std"),
}


@dataclass(frozen=True)
class HeadShift:
    """How many heads are shifted, how far, and along which direction.

    Attributes:
        top: How many heads, from the highest score down; ITI has 48 in a 7B model.
        alpha: Strength, in standard deviations; ITI has 15.
        direction: `probe`, each head's probe, or `means`, the mean of truthful activations minus that of
            hallucinated ones.

    Raises:
        GateError: A value is not one that exists.
    """

    top: int
    alpha: float
    direction: Direction = "probe"

    def __post_init__(self) -> None:
        check_choice("direction", self.direction, DIRECTIONS, GateError)
        if self.top < 1:
            raise GateError(f"top={self.top} shifts no heads: give a number of heads")
        if not math.isfinite(self.alpha):
            raise GateError(f"alpha={self.alpha} is not a finite number")

    def describe(self) -> dict[str, Any]:
        """The settings under the names of their model arguments."""
        return {"top": self.top, "alpha": self.alpha, "direction": self.direction}


def shift_gate(scores: TruthScores, shift: HeadShift, *, layers: Sequence[int] | None = None) -> Gate:
    """The gate that adds alpha * sigma * direction to the heads with the highest scores.

    Heads of equal score rank in the order of layer and head.

    Args:
        scores: Truth scores with directions, probed at `pre`.
        shift: How many heads, how far, and along which direction.
        layers: The layers whose heads are ranked (0-based); None for all.

    Raises:
        GateError: The artifact has no such directions or was not probed at `pre`, a direction has no length,
            or there are fewer heads than are to be shifted.
    """
    directions, std = _directions(scores, shift.direction)
    heads = np.arange(scores.scores.size).reshape(scores.shape)[list(check_layers(layers, scores.shape[0]))]
    if shift.top > heads.size:
        raise GateError(f"top={shift.top} is more than the {heads.size} heads to select from")
    added = np.zeros(directions.shape, dtype=np.float64)
    for index in rank_heads(scores.scores.ravel(), heads.ravel())[: shift.top]:
        layer, head = np.unravel_index(index, scores.shape)
        length = float(np.linalg.norm(directions[layer, head]))
        if length == 0:
            raise GateError(f"the {shift.direction} direction of layer {layer}, head {head} has no length")
        added[layer, head] = shift.alpha * std[layer, head] * directions[layer, head] / length
    ones = np.ones(scores.shape, dtype=np.float32)
    return Gate(ones, "pre", shift=added.astype(np.float32))


def _directions(scores: TruthScores, direction: Direction) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """float64 [layers, heads, width] directions of any length, and [layers, heads] deviations along them."""
    probed = scores.metadata.get("site")
    if probed != "pre":
        raise GateError(
            f"action=shift needs scores that were probed at site=pre, these were at "
            f"{probed or 'no known site'}: make them with `truthgate probe --site pre`"
        )
    found = [getattr(scores, name) for name in _ARRAYS[direction]]
    missing = [name for name, array in zip(_ARRAYS[direction], found, strict=True) if array is None]
    if missing:
        raise GateError(
            f"direction={direction} needs the scores' {' and '.join(missing)}, which they do not have: probe "
            "again with this version"
        )
    return found[0].astype(np.float64), found[1].astype(np.float64)
