"""The gates of a study up to their strength: scores of every kind, each action, and their controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.gating.gate import Norm, normalize, random_gate
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.gating.selection import HeadSelection, select_heads
from truthgate_eval.gating.shuffle import shuffle_within_layers

# Directions of g - 1 whose zero means something keep it; a probe's scores are centered in each layer.
_NORMS: dict[str, Norm] = {"gradient": "none", "learned": "none", "direct-effect": "none"}


@dataclass(frozen=True, eq=False)
class Direction:
    """A gate up to its strength: g = 1 + strength * values.

    Attributes:
        source: The kind of score or the control.
        action: `soft` or `select`.
        values: float64 [layers, heads].
        control_of: For a shuffled control, the source that was shuffled.
    """

    source: str
    action: str
    values: NDArray[np.float64]
    control_of: str | None = None

    @property
    def name(self) -> str:
        """For a table's row."""
        return f"{self.source} ({self.action})"


def make_directions(
    sources: Mapping[str, TruthScores], shape: tuple[int, int], *, select: int, shuffles: int, randoms: int
) -> list[Direction]:
    """Every gate of a study up to its strength, controls included.

    Args:
        sources: Scores by name.
        shape: (layers, heads) of the model.
        select: How many heads the action `select` amplifies, and how many it weakens; 0 leaves it out.
        shuffles: How many shuffled controls each kind of score has.
        randoms: How many random gates there are.

    Raises:
        ScoresError: Scores do not fit the model.
        GateError: The model has fewer heads than `select` takes.
    """
    directions: list[Direction] = []
    actions = ["soft", "select"] if select else ["soft"]
    for name, scores in sources.items():
        scores.check_fits(shape, "the model")
        norm = _NORMS.get(str(scores.metadata.get("kind")), "centered")
        shuffled = [shuffle_within_layers(scores, seed).scores for seed in range(shuffles)]
        for action in actions:
            directions.append(Direction(name, action, _values(scores.scores, action, norm, select)))
            directions += [
                Direction(
                    f"{name}, shuffled {seed}", action, _values(own, action, norm, select), control_of=name
                )
                for seed, own in enumerate(shuffled)
            ]
    for seed in range(randoms):
        drawn = random_gate(shape, seed=seed).values - 1
        directions += [
            Direction(f"random {seed}", action, _values(drawn, action, "none", select)) for action in actions
        ]
    return directions


def _values(scores: NDArray[np.float32], action: str, norm: Norm, count: int) -> NDArray[np.float64]:
    """G - 1 at strength 1: normalized scores, or 1 for the best `count` heads and -1 for the worst."""
    if action == "soft":
        return normalize(scores, norm)
    return select_heads(scores, HeadSelection(count, count)).astype(np.float64) - 1.0
