"""Runs of tasks that read log-odds, compared without a threshold: by AUROC, and by log-loss with an offset.

Accuracy and log-loss see a constant that is added to all log-odds, a bias towards yes. AUROC and the log-loss
with the best offset do not. `conclude` says in words which of the two a difference is.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.analysis.formatting import format_percent
from truthgate_eval.analysis.leaderboard.comparison import (
    Comparison,
    ComparisonSettings,
    Difference,
    LeaderboardPart,
    Verdict,
)
from truthgate_eval.analysis.multiple_testing import correct_p_values
from truthgate_eval.analysis.runs.methods import RunEntry
from truthgate_eval.metrics import log_odds
from truthgate_eval.metrics.log_odds import LogOddsAnswer

# The metrics whose differences are tested, in the order of tables.
TESTED = ("auroc", "acc_at_threshold", "log_loss", "log_loss_offset")
# Numbers of resamples times documents that are in memory at once.
_CHUNK = 4_000_000
# A constant added to all log-odds changes fitted offsets by rounding: no difference is as small as this.
_ROUNDING = 9


@dataclass(frozen=True)
class MetricTest:
    """One metric of a run against the baseline's; the fields' names are keys of `compare --json`.

    Attributes:
        difference: The run's value minus the baseline's, with its cluster bootstrap interval.
        p: Two-sided, of the bootstrap: twice the share of resamples on the other side of 0.
        p_corrected: Corrected for all comparisons of the task leaderboard in this metric.
        verdict: `better` or `worse` where the corrected test and the interval both say so.
    """

    difference: Difference
    p: float
    p_corrected: float = 1.0
    verdict: Verdict = "no difference"


@dataclass(frozen=True)
class LogOddsComparison:
    """One run against the baseline on one part; the fields' names are keys of `compare --json`.

    Attributes:
        part: The part's name.
        name: The run's name.
        yes_ratio: Share of yes at log-odds of 0, the run's and the baseline's.
        tests: By metric, those in `TESTED`.
        conclusion: What can be said, in one sentence.
    """

    part: str
    name: str
    yes_ratio: tuple[float, float]
    tests: dict[str, MetricTest]
    conclusion: str = ""


@dataclass(frozen=True)
class _TaskAnswers:
    """The answers of all runs to one task.

    Attributes:
        log_odds: [runs, documents].
        is_yes: Right answers, [documents].
        clusters: Index of each document's cluster in the part, [documents].
        means: Documents' contributions, [runs, metrics in `log_odds.MEANS`, documents].
    """

    log_odds: NDArray[np.float64]
    is_yes: NDArray[np.bool_]
    clusters: NDArray[np.int64]
    means: NDArray[np.float64]


def has_log_odds(tasks: Sequence[str], entries: Sequence[RunEntry]) -> bool:
    """Whether every run has log-odds for every document of these tasks."""
    return all(
        sample.log_odds is not None
        for entry in entries
        for task in tasks
        for sample in entry.run.tasks[task].samples.values()
    )


def part_values(part: LeaderboardPart, entry: RunEntry) -> dict[str, float]:
    """A run's metrics `log_odds.METRICS` on a part: plain means over its tasks."""
    measured = [log_odds.measure(_answers(entry, task, entry)) for task in part.tasks]
    return {name: float(np.mean([values[name] for values in measured])) for name in log_odds.METRICS}


def compare_log_odds(
    part: LeaderboardPart, entries: Sequence[RunEntry], settings: ComparisonSettings
) -> list[LogOddsComparison]:
    """Compare every run with the first on one part; `conclude` adds verdicts and conclusions.

    Args:
        part: The part, with log-odds in all runs.
        entries: The runs, the baseline first.
        settings: Of the bootstrap.
    """
    samples = [sample for task in part.tasks for sample in entries[0].run.tasks[task].samples.values()]
    index = {cluster: n for n, cluster in enumerate(dict.fromkeys(sample.cluster for sample in samples))}
    tasks = [_task_answers(task, entries, index) for task in part.tasks]
    value = _metrics(tasks, np.ones((1, len(index))))[0]
    drawn = _resample(tasks, len(index), settings)
    differences = np.round(value[1:] - value[:1], _ROUNDING)
    drawn_differences = np.round(drawn[:, 1:] - drawn[:, :1], _ROUNDING)
    tail = settings.alpha / 2
    with warnings.catch_warnings():  # all NaN, where a task has one right answer only
        warnings.simplefilter("ignore", RuntimeWarning)
        bounds = np.nanquantile(drawn_differences, [tail, 1 - tail], axis=0)
    yes = log_odds.METRICS.index("yes_ratio")
    compared = []
    for run, entry in enumerate(entries[1:]):
        tests = {}
        for metric in TESTED:
            m = log_odds.METRICS.index(metric)
            low, high = (float(bound[run, m]) for bound in bounds)
            difference = Difference(float(differences[run, m]), low, high)
            tests[metric] = MetricTest(difference, bootstrap_p_value(drawn_differences[:, run, m]))
        ratios = (float(value[run + 1, yes]), float(value[0, yes]))
        compared.append(LogOddsComparison(part.name, entry.name, ratios, tests))
    return compared


def bootstrap_p_value(differences: NDArray[np.float64]) -> float:
    """Two-sided p-value that resampled differences [resamples] are about 0; NaN among them are left out.

    Example:
        >>> bootstrap_p_value(np.array([0.1, 0.2, 0.3])), bootstrap_p_value(np.zeros(3))
        (0.5, 1.0)
    """
    known = differences[np.isfinite(differences)]
    side = min((known <= 0).sum(), (known >= 0).sum())
    return float(min(1.0, 2 * (side + 1) / (len(known) + 1)))


def conclude(
    compared: Sequence[LogOddsComparison],
    comparisons: Sequence[Comparison],
    settings: ComparisonSettings,
    baseline: str,
) -> list[LogOddsComparison]:
    """The comparisons with p-values corrected within each metric, with verdicts and conclusions.

    Args:
        compared: All of a task leaderboard.
        comparisons: The same runs and parts by accuracy, with verdicts.
        settings: The correction, and the level of the tests.
        baseline: The baseline's name.
    """
    if not compared:
        return []
    by_accuracy = {(one.part, one.name): one.verdict for one in comparisons}
    decided: list[dict[str, MetricTest]] = [{} for _ in compared]
    for metric in TESTED:
        tests = [one.tests[metric] for one in compared]
        corrected = correct_p_values([test.p for test in tests], settings.correction)
        for own, test, p in zip(decided, tests, corrected, strict=True):
            verdict = _verdict(metric, test.difference, p, settings.alpha)
            own[metric] = dataclasses.replace(test, p_corrected=p, verdict=verdict)
    return [
        dataclasses.replace(
            one,
            tests=own,
            conclusion=_conclusion(one, own, by_accuracy[one.part, one.name], baseline),
        )
        for one, own in zip(compared, decided, strict=True)
    ]


def _verdict(metric: str, difference: Difference, p_corrected: float, alpha: float) -> Verdict:
    if not p_corrected < alpha or not (difference.low > 0 or difference.high < 0):
        return "no difference"
    return "better" if (difference.value > 0) != (metric in log_odds.LOSSES) else "worse"


def _conclusion(
    one: LogOddsComparison, tests: dict[str, MetricTest], accuracy: Verdict, baseline: str
) -> str:
    """A sentence that tells a difference in what is known from a bias towards one answer."""
    ranked, fitted = tests["auroc"].verdict, tests["log_loss_offset"].verdict
    biased = [
        name
        for name, verdict in (("accuracy", accuracy), ("log-loss", tests["log_loss"].verdict))
        if verdict != "no difference"
    ]
    yes = " to ".join(format_percent(share) for share in reversed(one.yes_ratio))
    towards = "yes" if one.yes_ratio[0] > one.yes_ratio[1] else "no"
    where = f"{one.part}, {one.name} against {baseline}"
    if ranked != "no difference":
        return (
            f"{where}: tells yes from no {ranked} by AUROC, which no threshold or bias towards yes explains"
        )
    if fitted != "no difference":
        return f"{where}: {fitted} by log-loss, also with the best yes/no offset; AUROC shows no difference"
    if biased:
        return (
            f"{where}: {' and '.join(biased)} changed, and no change was found in AUROC or in the log-loss "
            f"with the best yes/no offset: a bias towards {towards} explains this (yes ratio {yes} %), "
            "without a better or worse grasp of the questions"
        )
    return f"{where}: no difference was found, with or without a threshold"


def _answers(entry: RunEntry, task: str, base: RunEntry) -> list[LogOddsAnswer]:
    """A run's answers to a task, in the baseline's order of documents."""
    samples = entry.run.tasks[task].samples
    found = [samples[key].log_odds for key in base.run.tasks[task].samples]
    return [answer for answer in found if answer is not None]


def _task_answers(task: str, entries: Sequence[RunEntry], index: dict[str, int]) -> _TaskAnswers:
    answers = [_answers(entry, task, entries[0]) for entry in entries]
    samples = entries[0].run.tasks[task].samples.values()
    values = [log_odds.document_values(own) for own in answers]
    return _TaskAnswers(
        log_odds=np.array([[answer["log_odds"] for answer in own] for own in answers]),
        is_yes=np.array([answer["gold"] == "yes" for answer in answers[0]], dtype=bool),
        clusters=np.array([index[sample.cluster] for sample in samples]),
        means=np.array([[own[name] for name in log_odds.MEANS] for own in values]),
    )


def _resample(
    tasks: Sequence[_TaskAnswers], clusters: int, settings: ComparisonSettings
) -> NDArray[np.float64]:
    """Metrics of resamples of whole clusters, [resamples, runs, metrics]; all runs see the same draws.

    Thresholds and offsets are not fitted anew: those fitted once, on other folds, are part of what is judged.
    """
    rng = np.random.default_rng(settings.seed)
    step = max(1, min(settings.resamples, _CHUNK // max(clusters, *(len(task.is_yes) for task in tasks))))
    drawn = []
    for start in range(0, settings.resamples, step):
        rows = min(step, settings.resamples - start)
        picks = rng.integers(clusters, size=(rows, clusters)) + clusters * np.arange(rows)[:, None]
        times = np.bincount(picks.ravel(), minlength=rows * clusters).reshape(rows, clusters)
        drawn.append(_metrics(tasks, times.astype(np.float64)))
    return np.concatenate(drawn)


def _metrics(tasks: Sequence[_TaskAnswers], times: NDArray[np.float64]) -> NDArray[np.float64]:
    """The plain mean over tasks of `log_odds.METRICS`, [resamples, runs, metrics].

    Args:
        tasks: The tasks.
        times: How often each cluster was drawn, [resamples, clusters].
    """
    total = np.zeros((len(times), len(tasks[0].log_odds), len(log_odds.METRICS)))
    for task in tasks:
        weights = times[:, task.clusters]
        with np.errstate(invalid="ignore", divide="ignore"):
            means = np.einsum("dn,rmn->drm", weights, task.means, optimize=True)
            means /= weights.sum(axis=1)[:, None, None]
        for m, metric in enumerate(log_odds.METRICS):
            if metric != "auroc":
                total[:, :, m] += means[:, :, log_odds.MEANS.index(metric)]
                continue
            for run, values in enumerate(task.log_odds):
                total[:, run, m] += log_odds.weighted_auroc(values, task.is_yes, weights)
    return total / len(tasks)
