"""How reliable a mean over documents is as a map of heads: the correlation of two halves of the documents."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def split_half_reliability(
    values: NDArray[Any],
    weights: NDArray[Any],
    clusters: NDArray[Any],
    *,
    splits: int = 100,
    seed: int = 0,
) -> dict[str, float]:
    """Mean correlation of the heads' means over two random halves of the clusters, stepped up to the whole.

    The Spearman-Brown formula 2 r / (1 + r) gives the reliability of the mean over all documents from the
    correlation r of two halves.

    Args:
        values: [documents, layers, heads]; each document's contribution.
        weights: [documents]; see `gradient.document_weights`.
        clusters: [documents]; documents of a cluster stay in one half.
        splits: How many random splits.
        seed: Of the splits.

    Returns:
        `all` over all heads, and `within` for heads within their layers; NaN where all heads are equal.
    """
    rng = np.random.default_rng(seed)
    names, index = np.unique(clusters, return_inverse=True)
    correlations: dict[str, list[float]] = {"all": [], "within": []}
    for _ in range(splits):
        first = np.isin(index, rng.permutation(len(names))[: len(names) // 2])
        halves = [
            np.tensordot(weights[half] / weights[half].sum(), values[half], 1) for half in (first, ~first)
        ]
        centered = [half - half.mean(axis=1, keepdims=True) for half in halves]
        for scope, (one, other) in (("all", halves), ("within", centered)):
            correlations[scope].append(_pearson(one, other))
    return {scope: _stepped_up(float(np.mean(found))) for scope, found in correlations.items()}


def _pearson(one: NDArray[Any], other: NDArray[Any]) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def _stepped_up(r: float) -> float:
    return 2 * r / (1 + r)
