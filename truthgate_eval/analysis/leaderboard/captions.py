"""Runs of captioning tasks, compared by CHAIR, recall and length: ratios of sums, of which images are drawn.

CHAIR_i is no mean over captions: a resample's CHAIR_i is the wrong mentions of all its images together
divided by their mentions.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.analysis.leaderboard.comparison import (
    ComparisonSettings,
    Difference,
    LeaderboardPart,
    Verdict,
)
from truthgate_eval.analysis.leaderboard.log_odds import MetricTest, bootstrap_p_value
from truthgate_eval.analysis.multiple_testing import correct_p_values
from truthgate_eval.analysis.runs.methods import RunEntry
from truthgate_eval.metrics.chair import COUNTS, LOSSES, METRICS, CaptionObjects, metrics_from_counts

# The metrics whose differences are tested, in the order of tables. Length stands beside them: it explains.
TESTED = ("chair_s", "chair_i", "recall")
# Numbers of resamples times clusters that are in memory at once.
_CHUNK = 4_000_000


@dataclass(frozen=True)
class CaptionComparison:
    """One run against the baseline on one part; the fields' names are keys of `compare --json`.

    Attributes:
        part: The part's name.
        name: The run's name.
        tests: By metric, those in `TESTED`.
        length: The difference in words of a caption, with its interval.
        intervals: By metric in `METRICS`, the interval of the run's own value, and of the baseline's.
    """

    part: str
    name: str
    tests: dict[str, MetricTest]
    length: Difference
    intervals: dict[str, tuple[tuple[float, float], tuple[float, float]]]


def has_captions(tasks: Sequence[str], entries: Sequence[RunEntry]) -> bool:
    """Whether every run has the objects of every document's caption in these tasks."""
    return all(
        sample.caption is not None
        for entry in entries
        for task in tasks
        for sample in entry.run.tasks[task].samples.values()
    )


def caption_counts(part: LeaderboardPart, entries: Sequence[RunEntry]) -> NDArray[np.float64]:
    """Sums over the captions of each image: [runs, clusters, tasks, 7], the last axis as `chair.COUNTS`."""
    base = entries[0].run
    samples = [sample for task in part.tasks for sample in base.tasks[task].samples.values()]
    index = {cluster: n for n, cluster in enumerate(dict.fromkeys(sample.cluster for sample in samples))}
    counts = np.zeros((len(entries), len(index), len(part.tasks), len(COUNTS)))
    for run, entry in enumerate(entries):
        for t, task in enumerate(part.tasks):
            for key, caption in _captions(entry, task):
                counts[run, index[base.tasks[task].samples[key].cluster], t] += caption.counts
    return counts


def part_values(counts: NDArray[np.float64]) -> list[dict[str, float]]:
    """Each run's metrics `chair.METRICS` on a part: plain means over its tasks.

    Args:
        counts: As `caption_counts` returns them.
    """
    values = metrics_from_counts(counts.sum(axis=1)).mean(axis=-2)
    return [dict(zip(METRICS, row.tolist(), strict=True)) for row in values]


def compare_captions(
    part: LeaderboardPart,
    counts: NDArray[np.float64],
    entries: Sequence[RunEntry],
    settings: ComparisonSettings,
) -> list[CaptionComparison]:
    """Compare every run with the first on one part; `decide_captions` adds the verdicts.

    Args:
        part: The part.
        counts: As `caption_counts` returns them.
        entries: The runs, the baseline first.
        settings: Of the bootstrap.
    """
    value = metrics_from_counts(counts.sum(axis=1)).mean(axis=-2)
    drawn = np.concatenate(list(_resample(counts, settings)))
    own_bounds = _bounds(drawn, settings.alpha)
    differences = drawn[:, 1:] - drawn[:, :1]
    bounds = _bounds(differences, settings.alpha)
    compared = []
    for run, entry in enumerate(entries[1:]):
        found = {
            metric: Difference(
                float(value[run + 1, m] - value[0, m]), float(bounds[0, run, m]), float(bounds[1, run, m])
            )
            for m, metric in enumerate(METRICS)
        }
        tests = {
            metric: MetricTest(found[metric], bootstrap_p_value(differences[:, run, METRICS.index(metric)]))
            for metric in TESTED
        }
        intervals = {
            metric: (_pair(own_bounds[:, run + 1, m]), _pair(own_bounds[:, 0, m]))
            for m, metric in enumerate(METRICS)
        }
        compared.append(CaptionComparison(part.name, entry.name, tests, found["length"], intervals))
    return compared


def decide_captions(
    compared: Sequence[CaptionComparison], settings: ComparisonSettings
) -> list[CaptionComparison]:
    """The comparisons with p-values corrected within each metric, and with verdicts.

    Args:
        compared: All of a task leaderboard.
        settings: The correction, and the level of the tests.
    """
    decided: list[dict[str, MetricTest]] = [{} for _ in compared]
    for metric in TESTED:
        tests = [one.tests[metric] for one in compared]
        corrected = correct_p_values([test.p for test in tests], settings.correction)
        for own, test, p in zip(decided, tests, corrected, strict=True):
            verdict = _verdict(metric, test.difference, p, settings.alpha)
            own[metric] = dataclasses.replace(test, p_corrected=p, verdict=verdict)
    return [dataclasses.replace(one, tests=own) for one, own in zip(compared, decided, strict=True)]


def _verdict(metric: str, difference: Difference, p_corrected: float, alpha: float) -> Verdict:
    if not p_corrected < alpha or not (difference.low > 0 or difference.high < 0):
        return "no difference"
    return "better" if (difference.value > 0) != (metric in LOSSES) else "worse"


def _captions(entry: RunEntry, task: str) -> Iterator[tuple[str, CaptionObjects]]:
    for key, sample in entry.run.tasks[task].samples.items():
        if sample.caption is not None:
            yield key, sample.caption


def _resample(counts: NDArray[np.float64], settings: ComparisonSettings) -> Iterator[NDArray[np.float64]]:
    """Metrics of resamples of whole images, [resamples, runs, metrics]; all runs see the same draws."""
    runs, clusters, tasks, width = counts.shape
    flat = np.moveaxis(counts, 1, 0).reshape(clusters, -1)
    rng = np.random.default_rng(settings.seed)
    step = max(1, min(settings.resamples, _CHUNK // clusters))
    for start in range(0, settings.resamples, step):
        rows = min(step, settings.resamples - start)
        picks = rng.integers(clusters, size=(rows, clusters)) + clusters * np.arange(rows)[:, None]
        times = np.bincount(picks.ravel(), minlength=rows * clusters).reshape(rows, clusters)
        sums = (times.astype(np.float64) @ flat).reshape(rows, runs, tasks, width)
        yield metrics_from_counts(sums).mean(axis=-2)


def _bounds(values: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Low and high of resampled values, [2, ...]; those that are not defined are left out."""
    with warnings.catch_warnings():  # all NaN, where no caption mentions an object
        warnings.simplefilter("ignore", RuntimeWarning)
        found: NDArray[np.float64] = np.nanquantile(values, [alpha / 2, 1 - alpha / 2], axis=0)
    return found


def _pair(bounds: NDArray[np.float64]) -> tuple[float, float]:
    low, high = bounds.tolist()
    return low, high
