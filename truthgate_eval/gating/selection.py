"""Selecting heads: the ones with the highest scores get one factor, those with the lowest another.

AllPath multiplies 20 heads and removes 20; any number of either is possible, over all heads or in each layer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.errors import GateError, check_choice
from truthgate_eval.gating.gate import Gate, check_layers
from truthgate_eval.gating.scores import TruthScores

log = logging.getLogger(__name__)

Pool = Literal["all", "layer"]
POOLS: tuple[Pool, ...] = get_args(Pool)


@dataclass(frozen=True)
class HeadSelection:
    """How many heads are selected, and their factors.

    Attributes:
        top: How many heads, from the highest score down, get `factor_in`.
        bottom: How many heads, from the lowest score up, get `factor_out`.
        factor_in: Factor of the top heads (`in` of a model argument).
        factor_out: Factor of the bottom heads (`out` of a model argument).
        per: `all` selects that many of all gated heads, `layer` that many in each gated layer.

    Raises:
        GateError: A value is not one that exists.
    """

    top: int = 20
    bottom: int = 20
    factor_in: float = 2.0
    factor_out: float = 0.0
    per: Pool = "all"

    def __post_init__(self) -> None:
        check_choice("per", self.per, POOLS, GateError)
        if self.top < 0 or self.bottom < 0 or self.top + self.bottom == 0:
            raise GateError(f"top={self.top},bottom={self.bottom} selects no heads: give numbers of heads")
        for name, factor in (("in", self.factor_in), ("out", self.factor_out)):
            if not math.isfinite(factor):
                raise GateError(f"{name}={factor} is not a finite number")

    def describe(self) -> dict[str, Any]:
        """The settings under the names of their model arguments."""
        return {
            "top": self.top,
            "bottom": self.bottom,
            "in": self.factor_in,
            "out": self.factor_out,
            "per": self.per,
        }


def select_heads(
    scores: TruthScores | NDArray[Any], selection: HeadSelection, *, layers: Sequence[int] | None = None
) -> NDArray[np.float32]:
    """The factor of every head: `factor_in`, `factor_out`, or 1.

    Heads are ranked by score, those of equal score in the order of layer and head. The first ones are the
    top heads and the last ones the bottom heads, so no head is both.

    Args:
        scores: [layers, heads].
        selection: How many heads, and their factors.
        layers: The layers to select from (0-based); None for all.

    Returns:
        float32 [layers, heads].

    Raises:
        GateError: There are fewer heads than are to be selected, or no such layers.

    Example:
        >>> select_heads(np.array([[0.5, 0.9, 0.5], [0.1, 0.7, 0.5]]), HeadSelection(2, 1)).tolist()
        [[1.0, 2.0, 1.0], [0.0, 2.0, 1.0]]
    """
    array = np.asarray(scores.scores if isinstance(scores, TruthScores) else scores)
    factors = np.ones(array.shape, dtype=np.float32)
    for pool in _pools(array.shape, selection.per, check_layers(layers, len(array))):
        count = len(pool)
        if selection.top + selection.bottom > count:
            where = "in a layer" if selection.per == "layer" else "to select from"
            raise GateError(
                f"top={selection.top},bottom={selection.bottom} are more than the {count} heads {where}"
            )
        ranked = rank_heads(array.ravel(), pool)
        factors.flat[ranked[: selection.top]] = selection.factor_in
        factors.flat[ranked[count - selection.bottom :]] = selection.factor_out
        _report_ties(array.ravel()[ranked], selection)
    return factors


def rank_heads(scores: NDArray[Any], pool: NDArray[np.intp]) -> NDArray[np.intp]:
    """Heads from the highest score down; those of equal score in their order in `pool`.

    Args:
        scores: [layers * heads].
        pool: Indices of the heads to rank.
    """
    return pool[np.argsort(-scores[pool], kind="stable")]


def select_gate(
    scores: TruthScores | NDArray[Any],
    selection: HeadSelection,
    *,
    site: Literal["post", "pre"] = "post",
    layers: Sequence[int] | None = None,
) -> Gate:
    """The gate that multiplies selected heads: see `select_heads`.

    Args:
        scores: [layers, heads].
        selection: How many heads, and their factors.
        site: As in `make_gate`.
        layers: As in `make_gate`.
    """
    return Gate(select_heads(scores, selection, layers=layers), site)


def random_selection_gate(
    shape: tuple[int, int],
    selection: HeadSelection,
    *,
    seed: int,
    site: Literal["post", "pre"] = "post",
    layers: Sequence[int] | None = None,
) -> Gate:
    """A gate of random heads, as many as `selection` takes: the baseline of `select_gate`.

    Args:
        shape: (layers, heads) of the model.
        selection: How many heads, and their factors.
        seed: Determines the heads.
        site: As in `make_gate`.
        layers: As in `make_gate`.
    """
    ranks = np.random.default_rng(seed).permutation(shape[0] * shape[1]).reshape(shape)
    return select_gate(ranks, selection, site=site, layers=layers)


def _pools(shape: tuple[int, ...], per: Pool, layers: Sequence[int]) -> Iterator[NDArray[np.intp]]:
    """Indices of the heads that are ranked together."""
    heads = np.arange(shape[0] * shape[1]).reshape(shape)[list(layers)]
    yield from heads if per == "layer" else [heads.ravel()]


def _report_ties(ranked: NDArray[Any], selection: HeadSelection) -> None:
    """Log where the order of layer and head, and not the score, decided which heads are selected."""
    for name, cut in (("top", selection.top), ("bottom", len(ranked) - selection.bottom)):
        if 0 < cut < len(ranked) and ranked[cut - 1] == ranked[cut]:
            log.info(
                "%s: %d heads have the score %g at the limit; their layer and number decided",
                name, int((ranked == ranked[cut]).sum()), float(ranked[cut]),
            )  # fmt: skip
