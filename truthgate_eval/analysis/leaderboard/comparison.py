"""Two runs on one part of a leaderboard: the documents counted, the difference, tests and verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.analysis.leaderboard.paired import (
    METRICS,
    cluster_bootstrap,
    correct_p_values,
    exact_mcnemar,
    mean_metrics,
)
from truthgate_eval.analysis.runs.methods import RunEntry
from truthgate_eval.analysis.runs.samples import SampleResult

# The level at which a difference is called one; of the intervals too.
ALPHA = 0.05


@dataclass(frozen=True)
class BoardPart:
    """One column group of a leaderboard.

    Attributes:
        name: Such as `qa`, `coco` or `mean`.
        tasks: The tasks whose plain mean it is.
        documents: How many were judged.
        clusters: How many pictures or questions they share.
        cluster_kind: `image`, `question` or `document`.
        metrics: The metrics that its tasks have.
    """

    name: str
    tasks: tuple[str, ...]
    documents: int
    clusters: int
    cluster_kind: str
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """A run's metric minus the baseline's, with its cluster bootstrap interval; shares of 1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """One run against the baseline on one part.

    Attributes:
        part: The part's name.
        name: The run's name.
        questions: Distinct questions that McNemar's test is on; one asked in several tasks counts once.
        only_run: Questions that only the run got right.
        only_baseline: Questions that only the baseline got right.
        differences: By metric: accuracy, and F1 where the tasks ask for yes or no.
        p: Of the exact McNemar test.
        p_corrected: Corrected for all comparisons of the leaderboard.
        verdict: `better`, `worse` or `no difference`.
    """

    part: str
    name: str
    questions: int
    only_run: int
    only_baseline: int
    differences: dict[str, Difference]
    p: float
    p_corrected: float
    verdict: str


def count_part(
    name: str, tasks: tuple[str, ...], entries: Sequence[RunEntry]
) -> tuple[NDArray[np.float64], BoardPart]:
    """What runs did on a part, counted.

    Args:
        name: The part's name.
        tasks: The tasks whose plain mean it is.
        entries: The baseline first; every run has every task, on the same documents.

    Returns:
        [runs, clusters, tasks, 5] sums (see `paired.COUNTS`), and what the part is.
    """
    base = entries[0].run
    records = [record for task in tasks for record in base.tasks[task].samples.values()]
    clusters = {cluster: n for n, cluster in enumerate(dict.fromkeys(record.cluster for record in records))}
    counts = np.zeros((len(entries), len(clusters), len(tasks), 5))
    for run, entry in enumerate(entries):
        for t, task in enumerate(tasks):
            found = entry.run.tasks[task].samples
            for key, own in base.tasks[task].samples.items():
                counts[run, clusters[own.cluster], t] += _count(found[key])
    yes_no = all(record.is_yes_no for record in records)
    kinds = {record.cluster_kind for record in records}
    kind = kinds.pop() if len(kinds) == 1 else "document"
    return counts, BoardPart(
        name, tasks, len(records), len(clusters), kind, METRICS if yes_no else METRICS[:1]
    )


def _count(record: SampleResult) -> tuple[int, bool, bool, bool, bool]:
    said, gold = record.parsed == "yes", record.gold == "yes"
    return 1, record.correct, said and gold, said, gold


def compare_part(
    part: BoardPart, counts: NDArray[np.float64], entries: Sequence[RunEntry], *, resamples: int, seed: int
) -> list[Comparison]:
    """Every run against the first, on one part; `judge` gives the verdicts."""
    values = mean_metrics(counts.sum(axis=1))
    bounds = cluster_bootstrap(counts, resamples=resamples, seed=seed, level=1 - ALPHA)
    return [
        _compare(part, entries[0], entry, value - values[0], bound)
        for entry, value, bound in zip(entries[1:], values[1:], bounds, strict=True)
    ]


def decide_verdicts(comparisons: Sequence[Comparison], correction: str) -> list[Comparison]:
    """The comparisons with their p-values corrected for all of them, and verdicts."""
    corrected = correct_p_values([one.p for one in comparisons], correction)
    return [_judged(one, p) for one, p in zip(comparisons, corrected, strict=True)]


def _compare(
    part: BoardPart, base: RunEntry, entry: RunEntry, value: NDArray[np.float64], bound: NDArray[np.float64]
) -> Comparison:
    """The comparison before its p-value is corrected."""
    questions = {
        record.identity: (entry.run.tasks[task].samples[key].correct, record.correct)
        for task in part.tasks
        for key, record in base.run.tasks[task].samples.items()
    }
    test = exact_mcnemar(*zip(*questions.values(), strict=True))
    differences = {
        metric: Difference(*(float(x) for x in (value[m], *bound[m])))
        for m, metric in enumerate(METRICS[:2])
        if metric in part.metrics
    }
    counts = (len(questions), test.only_first, test.only_second)
    return Comparison(part.name, entry.name, *counts, differences, test.p, 1.0, "")


def _judged(one: Comparison, p: float) -> Comparison:
    """A difference is one where the corrected test and the interval, which knows of clusters, both say so."""
    accuracy = one.differences["acc"]
    clear = p < ALPHA and not accuracy.low <= 0 <= accuracy.high
    verdict = ("better" if accuracy.value > 0 else "worse") if clear else "no difference"
    return dataclasses.replace(one, p_corrected=p, verdict=verdict)
