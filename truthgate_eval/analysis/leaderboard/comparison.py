"""Runs on one part of a leaderboard: documents counted, differences to the baseline, tests and verdicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.analysis.leaderboard.paired import cluster_bootstrap, exact_mcnemar, mean_metrics
from truthgate_eval.analysis.multiple_testing import Correction, correct_p_values
from truthgate_eval.analysis.runs.methods import RunEntry
from truthgate_eval.analysis.runs.samples import SampleResult
from truthgate_eval.metrics.clusters import ClusterKind
from truthgate_eval.metrics.yes_no import METRICS

Verdict = Literal["better", "worse", "no difference"]


@dataclass(frozen=True)
class ComparisonSettings:
    """How runs are compared; the fields' names are keys of `compare --json`.

    Attributes:
        correction: Of the p-values, over all comparisons of a task leaderboard.
        resamples: Draws of the cluster bootstrap.
        seed: Of the bootstrap.
        alpha: Level of the tests, and 1 - level of the intervals.
    """

    correction: Correction = "holm"
    resamples: int = 10_000
    seed: int = 0
    alpha: float = 0.05


@dataclass(frozen=True)
class LeaderboardPart:
    """One group of columns of a leaderboard; the fields' names are keys of `compare --json`.

    Attributes:
        name: Such as `qa`, `coco` or `mean`.
        tasks: The task runs of whose metrics the part is the plain mean.
        documents: Number of documents.
        clusters: Number of images or questions that the documents share.
        cluster_kind: What a cluster shares.
        metrics: The metrics that the tasks have.
    """

    name: str
    tasks: tuple[str, ...]
    documents: int
    clusters: int
    cluster_kind: ClusterKind
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """A run's metric minus the baseline's, with its cluster bootstrap interval; shares of 1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """One run against the baseline on one part; the fields' names are keys of `compare --json`.

    Attributes:
        part: The part's name.
        name: The run's name.
        questions: Number of distinct questions in McNemar's test; one that several tasks have counts once.
        only_run: Questions that only the run got right.
        only_baseline: Questions that only the baseline got right.
        differences: By metric: accuracy, and F1 of yes/no tasks.
        p: Of the exact McNemar test.
        p_corrected: Corrected for all comparisons of the task leaderboard.
        verdict: `better` or `worse` where the corrected test and the interval both say so.
    """

    part: str
    name: str
    questions: int
    only_run: int
    only_baseline: int
    differences: dict[str, Difference]
    p: float
    p_corrected: float = 1.0
    verdict: Verdict = "no difference"


def count_part(
    name: str, tasks: tuple[str, ...], entries: Sequence[RunEntry]
) -> tuple[NDArray[np.float64], LeaderboardPart]:
    """Count the answers of runs on a part.

    Args:
        name: The part's name.
        tasks: The task runs of whose metrics the part is the plain mean.
        entries: The baseline first; every run has every task, with the same documents.

    Returns:
        [runs, clusters, tasks, 5] sums in the order of `yes_no.COUNTS`, and the part.
    """
    base = entries[0].run
    samples = [sample for task in tasks for sample in base.tasks[task].samples.values()]
    clusters = {cluster: n for n, cluster in enumerate(dict.fromkeys(sample.cluster for sample in samples))}
    counts = np.zeros((len(entries), len(clusters), len(tasks), 5))
    for run, entry in enumerate(entries):
        for t, task in enumerate(tasks):
            results = entry.run.tasks[task].samples
            for key, sample in base.tasks[task].samples.items():
                counts[run, clusters[sample.cluster], t] += _count(results[key])
    is_yes_no = all(sample.is_yes_no for sample in samples)
    kinds = {sample.cluster_kind for sample in samples}
    kind: ClusterKind = kinds.pop() if len(kinds) == 1 else "document"
    metrics = METRICS if is_yes_no else METRICS[:1]
    return counts, LeaderboardPart(name, tasks, len(samples), len(clusters), kind, metrics)


def _count(sample: SampleResult) -> tuple[int, bool, bool, bool, bool]:
    said, gold = sample.parsed == "yes", sample.gold == "yes"
    return 1, sample.correct, said and gold, said, gold


def compare_part(
    part: LeaderboardPart,
    counts: NDArray[np.float64],
    entries: Sequence[RunEntry],
    settings: ComparisonSettings,
) -> list[Comparison]:
    """Compare every run with the first on one part; `decide_verdicts` adds the verdicts.

    Args:
        part: The part.
        counts: As `count_part` returns them.
        entries: The runs of `counts`, the baseline first.
        settings: Of the bootstrap.
    """
    values = mean_metrics(counts.sum(axis=1))
    bounds = cluster_bootstrap(
        counts, resamples=settings.resamples, seed=settings.seed, level=1 - settings.alpha
    )
    return [
        _compare(part, entries[0], entry, value - values[0], bound)
        for entry, value, bound in zip(entries[1:], values[1:], bounds, strict=True)
    ]


def decide_verdicts(comparisons: Sequence[Comparison], settings: ComparisonSettings) -> list[Comparison]:
    """The comparisons with p-values corrected for all of them, and with verdicts."""
    corrected = correct_p_values([one.p for one in comparisons], settings.correction)
    return [
        dataclasses.replace(one, p_corrected=p, verdict=_verdict(one, p, settings.alpha))
        for one, p in zip(comparisons, corrected, strict=True)
    ]


def _compare(
    part: LeaderboardPart,
    base: RunEntry,
    entry: RunEntry,
    value: NDArray[np.float64],
    bound: NDArray[np.float64],
) -> Comparison:
    """The comparison before its p-value is corrected."""
    questions = {
        sample.identity: (entry.run.tasks[task].samples[key].correct, sample.correct)
        for task in part.tasks
        for key, sample in base.run.tasks[task].samples.items()
    }
    test = exact_mcnemar(*zip(*questions.values(), strict=True))
    differences = {
        metric: Difference(*(float(x) for x in (value[m], *bound[m])))
        for m, metric in enumerate(METRICS[:2])
        if metric in part.metrics
    }
    counts = (len(questions), test.only_first, test.only_second)
    return Comparison(part.name, entry.name, *counts, differences, test.p)


def _verdict(one: Comparison, p_corrected: float, alpha: float) -> Verdict:
    """There is a difference where the corrected test and the interval, which knows of clusters, agree."""
    accuracy = one.differences["acc"]
    if p_corrected >= alpha or accuracy.low <= 0 <= accuracy.high:
        return "no difference"
    return "better" if accuracy.value > 0 else "worse"
