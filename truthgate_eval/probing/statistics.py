"""How sure a probe's accuracy and AUROC are: areas, each sequence's influence, clustered errors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata


def auroc(logits: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Area under the ROC curve of each row of `logits` [heads, n]; ties count half.

    The Mann-Whitney statistic over ranks; NaN where `labels` has one class only.
    """
    if len(np.unique(labels)) < 2:
        return np.full(len(logits), np.nan)
    return _placements(logits, labels)[:, labels == 1].mean(axis=1)


def auroc_influence(logits: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """What each sequence adds to the error of `auroc`, [heads, n]; NaN where `labels` has one class only.

    DeLong's components about their mean, each divided by the number of its class; summed by cluster
    they give Obuchowski's variance for clustered data.
    """
    if len(np.unique(labels)) < 2:
        return np.full(logits.shape, np.nan)
    placements = _placements(logits, labels)
    area = placements[:, labels == 1].mean(axis=1, keepdims=True)
    return (placements - area) / np.where(labels == 1, (labels == 1).sum(), (labels == 0).sum())


def _placements(logits: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """For a truthful sequence the share of others below it, for another the share of truthful above it."""
    placements = np.empty(logits.shape)
    ranks = rankdata(logits, axis=1)
    for label in (0, 1):
        mine = labels == label
        below = (ranks[:, mine] - rankdata(logits[:, mine], axis=1)) / (~mine).sum()
        placements[:, mine] = below if label else 1 - below
    return placements


def mean_auroc(
    validated: list[tuple[NDArray[Any], NDArray[np.int64]]], truth: NDArray[np.int64], clusters: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean of `auroc` over the folds (logits, rows) that have both labels, and its standard error."""
    areas = np.array([auroc(logits, truth[rows]) for logits, rows in validated])
    known = np.isfinite(areas).all(axis=1).sum()
    if not known:
        return areas[0], areas[0]
    influence = np.concatenate([auroc_influence(logits, truth[rows]) for logits, rows in validated], axis=1)
    judged = clusters[np.concatenate([rows for _, rows in validated])]
    return mean_of_known(areas), influence_stderr(np.nan_to_num(influence) / known, judged)


def mean_of_known(values: NDArray[Any]) -> NDArray[np.float64]:
    """Mean over the first dimension of what is not NaN; NaN, without a warning, where nothing is."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def clustered_stderr(correct: NDArray[Any], clusters: NDArray[Any]) -> NDArray[np.float64]:
    """Standard error of each row's mean of `correct` [heads, n], with sequences clustered."""
    return influence_stderr(influence_of(correct), clusters)


def influence_of(correct: NDArray[Any]) -> NDArray[np.float64]:
    """What each sequence adds to the error of each row's mean of `correct` [heads, n]."""
    return (correct - correct.mean(axis=1, keepdims=True)) / correct.shape[1]


def influence_stderr(influence: NDArray[Any], clusters: NDArray[Any]) -> NDArray[np.float64]:
    """Standard error of a statistic from each sequence's influence on it [..., n], with sequences clustered.

    sqrt(sum over clusters of (sum of influences)^2), times sqrt(G / (G - 1)) for G clusters.
    """
    names, index = np.unique(clusters, return_inverse=True)
    sums = np.zeros((len(names), *influence.shape[:-1]))
    np.add.at(sums, index, np.moveaxis(influence, -1, 0))
    return np.sqrt(len(names) / max(len(names) - 1, 1) * (sums**2).sum(axis=0))
