"""Standard errors of accuracy and AUROC, from each sequence's influence, clustered by question."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata


def auroc(logits: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Area under the ROC curve of each row of `logits` [heads, n]; ties count half.

    The Mann-Whitney statistic over ranks. NaN where `labels` has one class only.

    Example:
        >>> auroc(np.array([[0.1, 0.9, 0.8, 0.2]]), np.array([0, 1, 1, 0])).tolist()
        [1.0]
    """
    if len(np.unique(labels)) < 2:
        return np.full(len(logits), np.nan)
    return _placements(logits, labels)[:, labels == 1].mean(axis=1)


def auroc_influence(logits: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Influence [heads, n] of each sequence on `auroc`; NaN where `labels` has one class only.

    DeLong's components about their mean, each divided by the size of its class. Summed by cluster they
    give Obuchowski's variance for clustered data.
    """
    if len(np.unique(labels)) < 2:
        return np.full(logits.shape, np.nan)
    placements = _placements(logits, labels)
    area = placements[:, labels == 1].mean(axis=1, keepdims=True)
    return (placements - area) / np.where(labels == 1, (labels == 1).sum(), (labels == 0).sum())


def _placements(logits: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Placement of each sequence: the share of the other class that it is ranked rightly against."""
    placements = np.empty(logits.shape)
    ranks = rankdata(logits, axis=1)
    for label in (0, 1):
        of_label = labels == label
        below = (ranks[:, of_label] - rankdata(logits[:, of_label], axis=1)) / (~of_label).sum()
        placements[:, of_label] = below if label else 1 - below
    return placements


def mean_auroc(
    validated: list[tuple[NDArray[Any], NDArray[np.int64]]], truth: NDArray[np.int64], clusters: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean of `auroc` over the folds that have both labels, and its standard error, each [heads].

    Args:
        validated: For each fold, the logits [heads, m] of its validation data and their sequences [m].
        truth: Labels [n].
        clusters: Clusters [n].
    """
    areas = np.array([auroc(logits, truth[rows]) for logits, rows in validated])
    known = np.isfinite(areas).all(axis=1).sum()
    if not known:
        return areas[0], areas[0]
    influence = np.concatenate([auroc_influence(logits, truth[rows]) for logits, rows in validated], axis=1)
    validated_clusters = clusters[np.concatenate([rows for _, rows in validated])]
    stderr = influence_stderr(np.nan_to_num(influence) / known, validated_clusters)
    return mean_of_finite(areas), stderr


def mean_of_finite(values: NDArray[Any]) -> NDArray[np.float64]:
    """Mean over the first dimension, without NaN; NaN (and no warning) where all are NaN.

    Example:
        >>> mean_of_finite(np.array([[1.0, np.nan], [3.0, np.nan]])).tolist()
        [2.0, nan]
    """
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    total = np.where(finite, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def clustered_stderr(correct: NDArray[Any], clusters: ArrayLike) -> NDArray[np.float64]:
    """Standard error of the mean of each row of `correct` [heads, n], with sequences clustered."""
    return influence_stderr(accuracy_influence(correct), clusters)


def accuracy_influence(correct: NDArray[Any]) -> NDArray[np.float64]:
    """Influence [heads, n] of each sequence on the mean of each row of `correct` [heads, n]."""
    return (correct - correct.mean(axis=1, keepdims=True)) / correct.shape[1]


def influence_stderr(influence: NDArray[Any], clusters: ArrayLike) -> NDArray[np.float64]:
    """Standard error of a statistic, from each sequence's influence on it [..., n], clustered.

    sqrt(sum over clusters of (sum of influences)^2), times sqrt(G / (G - 1)) for G clusters.
    """
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((len(names), *influence.shape[:-1]))
    np.add.at(sums, index, np.moveaxis(influence, -1, 0))
    return np.sqrt(len(names) / max(len(names) - 1, 1) * (sums**2).sum(axis=0))


def difference_stderr(influence: NDArray[Any], groups: ArrayLike) -> NDArray[np.float32]:
    """Standard error [layers, heads] of a score, or of a difference of scores, clustered by group.

    Args:
        influence: [layers, heads, n]. Of a difference, the difference of both influences: sequences that
            both scores get wrong then add nothing.
        groups: [n]; the question of each sequence.
    """
    validated = influence.any(axis=(0, 1))
    clusters = np.asarray(groups)[validated]
    # Layer by layer: the sums over clusters are float64.
    return np.stack([influence_stderr(layer[:, validated], clusters) for layer in influence]).astype(
        np.float32
    )
