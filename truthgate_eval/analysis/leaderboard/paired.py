"""Two runs on the same documents: is one better? Exact tests, cluster bootstrap, corrected p-values.

Pure functions over arrays. Documents that share an image or a question are not independent; the
intervals draw whole clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from truthgate_eval.metrics.yes_no import metrics_from_counts

# Resamples that are held in memory at once, times clusters.
_CHUNK = 4_000_000


@dataclass(frozen=True)
class McNemar:
    """The exact McNemar test on which documents two runs got right.

    Attributes:
        only_first: Documents that only the first run got right.
        only_second: Documents that only the second run got right.
        p: Two-sided p-value; 1 where no document differs.
    """

    only_first: int
    only_second: int
    p: float


def exact_mcnemar(first: ArrayLike, second: ArrayLike) -> McNemar:
    """Test whether two runs are right equally often.

    Args:
        first: [documents] booleans: was the first run right?
        second: The same documents in the same order.
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"expected two rows of equal length, got {a.shape} and {b.shape}")
    only_first, only_second = int((a & ~b).sum()), int((~a & b).sum())
    differ = only_first + only_second
    # If the runs are equally good, each document that differs is won by either with probability 1/2.
    p = float(binomtest(only_first, differ, 0.5).pvalue) if differ else 1.0
    return McNemar(only_first, only_second, p)


def mean_metrics(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """The plain mean over tasks of each metric: [..., tasks, 5] counts to [..., 4]."""
    return metrics_from_counts(counts).mean(axis=-2)


def cluster_bootstrap(
    counts: NDArray[np.float64], *, resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> NDArray[np.float64]:
    """Percentile intervals of each run's difference to the first run, drawing whole clusters.

    All runs see the same draws, so the differences are paired. With few clusters (below about 20) such
    intervals are too narrow.

    Args:
        counts: [runs, clusters, tasks, 5] sums over a cluster, in the order of `yes_no.COUNTS`.
        resamples: Number of draws.
        seed: Of the draws.
        level: Share of the intervals that should hold the true difference.

    Returns:
        [runs - 1, 4, 2]: low and high of the difference in each metric of `yes_no.METRICS`.
    """
    runs, clusters, tasks, width = counts.shape
    flat = np.moveaxis(counts, 1, 0).reshape(clusters, -1)
    rng = np.random.default_rng(seed)
    step = max(1, min(resamples, _CHUNK // clusters))
    drawn = []
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        picks = rng.integers(clusters, size=(rows, clusters)) + clusters * np.arange(rows)[:, None]
        times = np.bincount(picks.ravel(), minlength=rows * clusters).reshape(rows, clusters)
        sums = (times.astype(np.float64) @ flat).reshape(rows, runs, tasks, width)
        values = mean_metrics(sums)
        drawn.append(values[:, 1:] - values[:, :1])
    tail = (1 - level) / 2
    bounds = np.nanquantile(np.concatenate(drawn), [tail, 1 - tail], axis=0)
    return np.moveaxis(bounds, 0, -1)
