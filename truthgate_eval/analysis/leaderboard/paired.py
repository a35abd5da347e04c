"""Two runs on the same documents: is one better? Exact tests, cluster bootstrap, corrected p-values.

Pure functions over arrays. Documents that share a picture or a question are not independent; the
intervals draw whole clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from truthgate_eval.errors import TruthGateError

CORRECTIONS = {"holm": "holm", "bonferroni": "bonferroni", "fdr_bh": "fdr_bh", "none": None}
METRICS = ("acc", "f1", "precision", "recall")
# What is summed over documents; every metric is a ratio of such sums.
COUNTS = ("documents", "right", "true_yes", "said_yes", "gold_yes")
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
    table = [[int((a & b).sum()), int((a & ~b).sum())], [int((~a & b).sum()), int((~a & ~b).sum())]]
    result = mcnemar(table, exact=True)
    return McNemar(table[0][1], table[1][0], min(1.0, float(result.pvalue)))


def correct_p_values(p_values: Sequence[float], method: str = "holm") -> list[float]:
    """P-values corrected for their number.

    Raises:
        TruthGateError: The method is none of `CORRECTIONS`.
    """
    if method not in CORRECTIONS:
        raise TruthGateError(f"unknown correction {method!r}: expected one of {', '.join(CORRECTIONS)}")
    name = CORRECTIONS[method]
    if name is None or not p_values:
        return list(p_values)
    return [float(p) for p in multipletests(p_values, method=name)[1]]


def metrics_of(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Accuracy, F1, precision and recall of summed counts.

    Args:
        counts: [..., 5], the last axis in the order of `COUNTS`.

    Returns:
        [..., 4] in the order of `METRICS`. As in `judgement`, a ratio of nothing is 0; accuracy of no
        document is nan.
    """
    documents, right, true_yes, said_yes, gold_yes = np.moveaxis(counts, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = right / documents
    return np.stack(
        [
            accuracy,
            _ratio(2 * true_yes, said_yes + gold_yes),
            _ratio(true_yes, said_yes),
            _ratio(true_yes, gold_yes),
        ],
        axis=-1,
    )


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros_like(part, dtype=np.float64), where=whole > 0)


def mean_metrics(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """The plain mean over tasks of each metric: [..., tasks, 5] counts to [..., 4]."""
    return metrics_of(counts).mean(axis=-2)


def cluster_bootstrap(
    counts: NDArray[np.float64], *, resamples: int = 10_000, seed: int = 0, level: float = 0.95
) -> NDArray[np.float64]:
    """Percentile intervals of each run's difference to the first run, drawing whole clusters.

    All runs see the same draws, so the differences are paired. With few clusters (below about 20) such
    intervals are too narrow.

    Args:
        counts: [runs, clusters, tasks, 5] sums over the documents of a cluster, in the order of `COUNTS`.
        resamples: Number of draws.
        seed: Of the draws.
        level: Share of the intervals that should hold the true difference.

    Returns:
        [runs - 1, 4, 2]: low and high of the difference in each metric of `METRICS`.
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
