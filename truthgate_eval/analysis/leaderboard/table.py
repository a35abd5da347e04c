"""Leaderboards of runs: the metrics of every run, and its paired differences to the baseline."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.analysis.leaderboard import captions, comparability
from truthgate_eval.analysis.leaderboard.comparison import (
    Comparison,
    ComparisonSettings,
    LeaderboardPart,
    compare_part,
    count_part,
    decide_verdicts,
)
from truthgate_eval.analysis.leaderboard.log_odds import (
    LogOddsComparison,
    compare_log_odds,
    conclude,
    has_log_odds,
    part_values,
)
from truthgate_eval.analysis.leaderboard.paired import mean_metrics
from truthgate_eval.analysis.leaderboard.published import PublishedRow, data_set_of, published_rows
from truthgate_eval.analysis.multiple_testing import check_correction
from truthgate_eval.analysis.runs.methods import (
    LABELS,
    METHODS,
    Method,
    RunEntry,
    choose_baseline,
    describe_gate,
)
from truthgate_eval.analysis.runs.results_files import RunError
from truthgate_eval.analysis.runs.task_groups import TaskGroup, task_groups
from truthgate_eval.credentials import mask_credentials
from truthgate_eval.metrics import chair, log_odds
from truthgate_eval.metrics.yes_no import METRICS

SCHEMA_VERSION = 1
# Of parts whose tasks read log-odds: with F1, which other yes/no tasks have too.
_LOG_ODDS_COLUMNS = ("acc", "f1", *log_odds.METRICS[1:])


@dataclass(frozen=True)
class LeaderboardCell:
    """A metric as a share of 1: of one run, or the mean and sample standard deviation of several."""

    mean: float
    sd: float | None = None
    runs: int = 1


@dataclass(frozen=True)
class LeaderboardRow:
    """One row of a leaderboard.

    Attributes:
        label: The method, or the name that the user chose.
        method: The method.
        origin: Whether its figures were measured or are the paper's.
        gate: The gate in a few words.
        cells: By part and metric.
    """

    label: str
    method: Method
    origin: Literal["measured", "published"]
    gate: str
    cells: dict[str, dict[str, LeaderboardCell]]


@dataclass(frozen=True)
class TaskLeaderboard:
    """The leaderboard of one task or group of tasks.

    Attributes:
        name: The task's or the group's.
        parts: Its groups of columns.
        rows: Measured ones in the paper's order, then published ones.
        comparisons: Each run against the baseline on each part.
        log_odds: The same without a threshold, on the parts whose tasks read log-odds.
        captions: Each run against the baseline on the parts whose tasks have captions.
    """

    name: str
    parts: list[LeaderboardPart]
    rows: list[LeaderboardRow]
    comparisons: list[Comparison]
    log_odds: list[LogOddsComparison]
    captions: list[captions.CaptionComparison] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON."""
        content = dataclasses.asdict(self)
        content["rows"] = [
            {"kind" if key == "method" else key: value for key, value in row.items()}
            for row in content["rows"]
        ]
        for name in ("log_odds", "captions"):
            if not content[name]:
                del content[name]
        found: dict[str, Any] = _without_nan(content)
        return found


@dataclass(frozen=True)
class Leaderboard:
    """The leaderboards of all tasks that some runs have in common.

    Attributes:
        baseline: The run that the others are compared with.
        entries: All runs, the baseline first.
        task_leaderboards: One for each task or group.
        warnings: What a reader should know about them.
        settings: How runs were compared.
    """

    baseline: RunEntry
    entries: list[RunEntry]
    task_leaderboards: list[TaskLeaderboard]
    warnings: list[str]
    settings: ComparisonSettings

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON: metrics and differences are shares of 1, intervals [low, high]."""
        return {
            "schema": SCHEMA_VERSION,
            "settings": dataclasses.asdict(self.settings),
            "baseline": self.baseline.name,
            "runs": [_run_dict(entry) for entry in self.entries],
            "boards": [one.as_dict() for one in self.task_leaderboards],
            "warnings": self.warnings,
        }


def make_leaderboard(
    entries: Sequence[RunEntry],
    *,
    baseline: str | None = None,
    correction: str = "holm",
    resamples: int = 10_000,
    seed: int = 0,
    published: str = "auto",
) -> Leaderboard:
    """Compare runs on the baseline's tasks.

    Args:
        entries: Two runs or more.
        baseline: The name of the run to compare with; by default the vanilla one.
        correction: One of `multiple_testing.CORRECTIONS`.
        resamples: Draws of the cluster bootstrap.
        seed: Of the bootstrap.
        published: Which of the paper's rows to show, see `published_rows`.

    Raises:
        RunError: The runs have different documents, or no task in common.
        TruthGateError: An option does not exist.
    """
    settings = ComparisonSettings(check_correction(correction), resamples, seed)
    if len(entries) < 2:
        raise RunError("one run alone cannot be compared: give two or more")
    base, warnings = choose_baseline(entries, baseline)
    others = [entry for entry in entries if entry is not base]
    comparability.check_common_tasks(base, others)
    warnings += [note for entry in entries for note in entry.run.notes]
    warnings += [line for entry in others for line in comparability.missing_tasks(base, entry)]
    warnings += comparability.differences(base, others)
    warnings += [line for entry in entries for line in comparability.unparsed_warnings(entry, base.run.tasks)]
    paper = published_rows(base.run.model, published)
    task_leaderboards = []
    for group in task_groups(base.run):
        made = _make_task_leaderboard(group, base, others, paper, settings)
        task_leaderboards.append(made)
        warnings += comparability.few_cluster_warnings(made.name, made.parts)
    return Leaderboard(base, [base, *others], task_leaderboards, list(dict.fromkeys(warnings)), settings)


def _make_task_leaderboard(
    group: TaskGroup,
    base: RunEntry,
    others: Sequence[RunEntry],
    paper: Sequence[PublishedRow],
    settings: ComparisonSettings,
) -> TaskLeaderboard:
    parts: list[LeaderboardPart] = []
    measured: dict[str, dict[str, dict[str, float]]] = {}  # by run, part and metric
    comparisons: list[Comparison] = []
    without_threshold: list[LogOddsComparison] = []
    by_objects: list[captions.CaptionComparison] = []
    for name, tasks in group.parts.items():
        present = [base, *(entry for entry in others if all(task in entry.run.tasks for task in tasks))]
        part, counts, values = _measure_part(name, tasks, present)
        parts.append(part)
        for entry, own in zip(present, values, strict=True):
            measured.setdefault(entry.name, {})[name] = own
        if len(present) > 1 and part.metrics == chair.METRICS:
            by_objects += captions.compare_captions(part, counts, present, settings)
        elif len(present) > 1:
            comparisons += compare_part(part, counts, present, settings)
            if part.metrics == _LOG_ODDS_COLUMNS:
                without_threshold += compare_log_odds(part, present, settings)
    entries = [entry for entry in (base, *others) if entry.name in measured]
    rows = [*_measured_rows(entries, measured, parts), *_published_rows(paper, parts)]
    comparisons = decide_verdicts(comparisons, settings)
    without_threshold = conclude(without_threshold, comparisons, settings, base.name)
    by_objects = captions.decide_captions(by_objects, settings)
    return TaskLeaderboard(group.name, parts, rows, comparisons, without_threshold, by_objects)


def _measure_part(
    name: str, tasks: tuple[str, ...], entries: Sequence[RunEntry]
) -> tuple[LeaderboardPart, NDArray[np.float64], list[dict[str, float]]]:
    """A part, the sums by cluster that comparisons resample, and each run's metrics."""
    counts, part = count_part(name, tasks, entries)
    if captions.has_captions(tasks, entries):
        part = dataclasses.replace(part, metrics=chair.METRICS)
        counts = captions.caption_counts(part, entries)
        return part, counts, captions.part_values(counts)
    values = [dict(zip(METRICS, row.tolist(), strict=True)) for row in mean_metrics(counts.sum(axis=1))]
    if has_log_odds(tasks, entries):
        part = dataclasses.replace(part, metrics=_LOG_ODDS_COLUMNS)
        for entry, own in zip(entries, values, strict=True):
            own |= part_values(part, entry)
    return part, counts, values


def _measured_rows(
    entries: Sequence[RunEntry],
    measured: Mapping[str, Mapping[str, Mapping[str, float]]],
    parts: Sequence[LeaderboardPart],
) -> list[LeaderboardRow]:
    """One row per label, in the paper's order."""
    rows = []
    for label in dict.fromkeys(entry.label for entry in entries):
        own = [entry for entry in entries if entry.label == label]
        cells = {}
        for part in parts:
            values = [measured[entry.name][part.name] for entry in own if part.name in measured[entry.name]]
            if values:
                cells[part.name] = {m: _cell(np.array([own[m] for own in values])) for m in part.metrics}
        gate = describe_gate(own[0].run, found=len(own) == 1)
        rows.append(LeaderboardRow(label, own[0].method, "measured", gate, cells))
    return sorted(rows, key=lambda row: METHODS.index(row.method))


def _cell(values: NDArray[np.float64]) -> LeaderboardCell:
    sd = float(values.std(ddof=1)) if len(values) > 1 else None
    return LeaderboardCell(float(values.mean()), sd, len(values))


def _published_rows(paper: Sequence[PublishedRow], parts: Sequence[LeaderboardPart]) -> list[LeaderboardRow]:
    rows = []
    for row in paper:
        cells = {}
        for part in parts:
            data_set = data_set_of(part.tasks)
            if data_set in row.cells:
                figures = row.cells[data_set].items()
                cells[part.name] = {metric: LeaderboardCell(mean, sd) for metric, (mean, sd) in figures}
        if cells:
            gate = f"lam={row.lam:g}" if row.lam is not None else ""
            label = f"{LABELS[row.method]}, {row.model}"
            rows.append(LeaderboardRow(label, row.method, "published", gate, cells))
    return rows


def _without_nan(value: Any) -> Any:
    """JSON in which a number that is not defined, such as the AUROC of one class, is null."""
    if isinstance(value, dict):
        return {name: _without_nan(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _run_dict(entry: RunEntry) -> dict[str, Any]:
    run = entry.run
    found: dict[str, Any] = mask_credentials({
        "name": entry.name,
        "label": entry.label,
        "kind": entry.method,
        "path": str(run.path),
        "results_file": str(run.file),
        "host": run.harness,
        "model": run.model,
        "gate": run.gate,
        "facts": run.environment,
    })  # fmt: skip
    return found
