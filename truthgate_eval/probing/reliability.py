"""How reliable scores are as a map of heads: the correlation of two halves of the documents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FEWEST_CLUSTERS = 4


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
        `all` over all heads, and `within` for heads within their layers. A number is missing where all heads
        are equal, and both are missing where there are fewer than four clusters.
    """
    rng = np.random.default_rng(seed)
    names, index = np.unique(clusters, return_inverse=True)
    if len(names) < _FEWEST_CLUSTERS:
        return {}
    correlations: dict[str, list[float]] = {"all": [], "within": []}
    for _ in range(splits):
        first = np.isin(index, rng.permutation(len(names))[: len(names) // 2])
        one, other = (
            np.tensordot(weights[half] / weights[half].sum(), values[half], 1) for half in (first, ~first)
        )
        for scope, r in _correlations(one, other).items():
            correlations[scope].append(r)
    return _reliability({scope: float(np.mean(found)) for scope, found in correlations.items()})


def score_reliability(
    scores: NDArray[Any], influence: NDArray[Any], groups: NDArray[Any]
) -> dict[str, float]:
    """`split_half_reliability` of probes' scores, from the documents that they were validated on.

    Both halves validate the same probes. Probes that are fitted on other documents differ by more.

    Args:
        scores: [layers, heads]; means over sequences.
        influence: [layers, heads, n], see `ProbeResult.influence`.
        groups: [n]; the question of each sequence.
    """
    validated = influence.any(axis=(0, 1))
    names, index = np.unique(groups[validated], return_inverse=True)
    counts = np.bincount(index)
    sums = np.zeros((len(names), *scores.shape), dtype=np.float32)
    np.add.at(sums, index, np.moveaxis(influence[..., validated], -1, 0))
    means = scores + sums * (validated.sum() / counts)[:, None, None]
    return split_half_reliability(means, counts.astype(np.float64), names)


def stepped_up_correlation(one: NDArray[Any], other: NDArray[Any]) -> dict[str, float]:
    """The reliability of scores from all documents, from the scores of two halves of them.

    Args:
        one: [layers, heads].
        other: [layers, heads].

    Returns:
        As `split_half_reliability`.

    Example:
        >>> half = np.array([[0.1, 0.3], [0.2, 0.8]])
        >>> stepped_up_correlation(half, 2 * half)
        {'all': 1.0, 'within': 1.0}
    """
    return _reliability(_correlations(one, other))


def _correlations(one: NDArray[Any], other: NDArray[Any]) -> dict[str, float]:
    """Over all heads, and over heads within their layers."""
    centered = [half - half.mean(axis=1, keepdims=True) for half in (one, other)]
    return {"all": _pearson(one, other), "within": _pearson(*centered)}


def _pearson(one: NDArray[Any], other: NDArray[Any]) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def _reliability(correlations: Mapping[str, float]) -> dict[str, float]:
    """Spearman-Brown; halves that do not agree have nothing that more documents would step up."""
    found = {scope: 2 * r / (1 + r) if r > 0 else r for scope, r in correlations.items()}
    return {scope: round(r, 6) for scope, r in found.items() if math.isfinite(r)}
