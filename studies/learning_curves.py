"""Probes of the first n documents of a random order, fitted on activations that were captured once."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from truthgate_eval.gating.attention_layout import AttentionLayout
from truthgate_eval.probing.config import ProbeConfig, SolverName
from truthgate_eval.probing.cross_validation import cross_validate_heads
from truthgate_eval.probing.reliability import score_reliability

SOLVERS: tuple[SolverName, ...] = ("adamw", "newton")
FEATURES = ("raw", "standardised")
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Captured:
    """The activations of all documents.

    Attributes:
        activations: float32 [n, layers, heads, width], of each sequence.
        labels: int [n]; 1 truthful, 0 hallucinated.
        places: int [n]; where the sequence's document stands in the random order, from 0.
    """

    activations: NDArray[np.float32]
    labels: NDArray[np.int64]
    places: NDArray[np.int64]

    @property
    def documents(self) -> int:
        """How many documents there are."""
        return int(self.places.max()) + 1

    def part(self, first: int, stop: int) -> Captured:
        """A copy of some documents, in the order of their places, which are counted from 0 again."""
        rows = np.argsort(self.places, kind="stable")
        rows = rows[(self.places[rows] >= first) & (self.places[rows] < stop)]
        return Captured(self.activations[rows], self.labels[rows], self.places[rows] - first)


def random_places(groups: Sequence[int], clusters: Sequence[Hashable], *, seed: int) -> NDArray[np.int64]:
    """The place of each sequence's document in a random order of the clusters.

    The documents of a cluster stay together, as in a task with several questions about an image: the first n
    documents are about as few images as those of `--limit n`, and share none with the last ones, save one.

    Args:
        groups: [n]; the document of each sequence.
        clusters: [n]; what a document shares with others, equal in all its sequences.
        seed: Of the order.

    Example:
        >>> random_places([5, 5, 7, 8], ["a", "a", "b", "a"], seed=1).tolist()
        [1, 1, 0, 2]
    """
    of_document = dict(zip(groups, clusters, strict=True))
    names = list(dict.fromkeys(of_document.values()))
    rank = dict(zip(names, np.random.default_rng(seed).permutation(len(names)).tolist(), strict=True))
    order = sorted(of_document, key=lambda group: rank[of_document[group]])
    place = {group: number for number, group in enumerate(order)}
    return np.array([place[group] for group in groups], dtype=np.int64)


def standardised(activations: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each feature with mean 0 and variance 1 over the sequences; one that never changes becomes 0.

    Args:
        activations: [n, layers, heads, width].
    """
    deviation = activations.std(axis=0)
    return (activations - activations.mean(axis=0)) / np.where(deviation > 0, deviation, np.float32(1))


def projected(activations: NDArray[np.float32], layout: AttentionLayout) -> NDArray[np.float32]:
    """Activations at site `post` from those at site `pre` of the same tokens: one linear map a layer.

    Args:
        activations: [n, layers, heads, width] at site `pre`.
        layout: The model's; its heads have one width in all layers.
    """
    n, layers, heads, _ = activations.shape
    found = np.empty((n, layers, heads, layout.head_width("post")), dtype=np.float32)
    with torch.no_grad():
        for layer, projection in enumerate(layout.projections):
            x = torch.from_numpy(activations[:, layer].reshape(n, -1))
            found[:, layer] = projection.module(x).float().numpy().reshape(n, heads, -1)
    return found


def fit(captured: Captured, *, features: str, solver: SolverName, seed: int = 42) -> Row:
    """One point of a curve: the probes of all heads, and how reliable their scores are.

    Args:
        captured: The documents to fit on.
        features: Of `FEATURES`.
        solver: The solver, with its defaults.
        seed: Of the folds.

    Returns:
        Mean, best and all scores [layers][heads], the reliability of the scores, and the seconds of fitting.
    """
    x = standardised(captured.activations) if features == "standardised" else captured.activations
    config = ProbeConfig(solver=solver, seed=seed)
    start = time.perf_counter()
    result = cross_validate_heads(x, captured.labels, captured.places, config)
    seconds = time.perf_counter() - start
    return {
        "mean": round(float(result.scores.mean()), 5),
        "best": round(float(result.scores.max()), 5),
        "reliability": score_reliability(result.scores, result.influence, captured.places),
        "seconds": round(seconds, 2),
        "scores": np.round(result.scores.astype(np.float64), 5).tolist(),
    }


def within_layers(one: Row, other: Row) -> float:
    """Pearson's r of two rows' scores, each less its layer's mean; NaN where all heads are equal."""
    centred = [scores - scores.mean(axis=1, keepdims=True) for scores in map(_scores, (one, other))]
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(centred[0].ravel(), centred[1].ravel())[0, 1])


def expected_r(one: Row, other: Row) -> float:
    """The correlation within layers that the reliabilities of two rows allow; NaN where one has none."""
    known: list[Mapping[str, float]] = [row["reliability"] for row in (one, other)]
    return math.sqrt(math.prod(max(each.get("within", math.nan), 0.0) for each in known))


def _scores(row: Row) -> NDArray[np.float64]:
    return np.array(row["scores"], dtype=np.float64)
