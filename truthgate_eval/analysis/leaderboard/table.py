"""Runs side by side: every run's metrics, and its paired difference to the baseline, with statistics."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.analysis.leaderboard import comparability
from truthgate_eval.analysis.leaderboard.comparison import (
    ALPHA,
    BoardPart,
    Comparison,
    compare_part,
    count_part,
    decide_verdicts,
)
from truthgate_eval.analysis.leaderboard.paired import CORRECTIONS, METRICS, mean_metrics
from truthgate_eval.analysis.leaderboard.published import data_set_of, published_rows
from truthgate_eval.analysis.runs.methods import LABELS, RunEntry, choose_baseline, describe_gate
from truthgate_eval.analysis.runs.run import RunError
from truthgate_eval.analysis.runs.task_groups import TaskGroup, task_groups
from truthgate_eval.errors import TruthGateError

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class LeaderboardCell:
    """A metric as a share of 1: of one run, or the mean and sample standard deviation of several."""

    mean: float
    sd: float | None = None
    runs: int = 1


@dataclass(frozen=True)
class LeaderboardRow:
    """One line of a leaderboard; `cells` by part and metric, `origin` is `measured` or `published`."""

    label: str
    kind: str
    origin: str
    gate: str
    cells: dict[str, dict[str, LeaderboardCell]]


@dataclass(frozen=True)
class Board:
    """The leaderboard of one task or group."""

    name: str
    parts: list[BoardPart]
    rows: list[LeaderboardRow]
    comparisons: list[Comparison]


@dataclass(frozen=True)
class Leaderboard:
    """All leaderboards of some runs, and what a reader should know about them."""

    baseline: RunEntry
    entries: list[RunEntry]
    boards: list[Board]
    warnings: list[str]
    settings: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON: metrics and differences are shares of 1, intervals [low, high]."""
        return {
            "schema": SCHEMA_VERSION,
            "settings": self.settings,
            "baseline": self.baseline.name,
            "runs": [_run_dict(entry) for entry in self.entries],
            "boards": [dataclasses.asdict(board) for board in self.boards],
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
        correction: One of `CORRECTIONS`, over all comparisons of a leaderboard.
        resamples: Draws of the cluster bootstrap.
        seed: Of the bootstrap.
        published: Which of the paper's rows to show, see `published_rows`.

    Raises:
        RunError: The runs judged different documents, or have no task in common.
        TruthGateError: An option is not one that exists.
    """
    if correction not in CORRECTIONS:
        raise TruthGateError(f"unknown correction {correction!r}: expected one of {', '.join(CORRECTIONS)}")
    if len(entries) < 2:
        raise RunError("one run alone cannot be compared: give two or more")
    base, warnings = choose_baseline(entries, baseline)
    others = [entry for entry in entries if entry is not base]
    _check(base, others)
    warnings += [note for entry in entries for note in entry.run.notes]
    warnings += [line for entry in others for line in comparability.missing_tasks(base, entry)]
    warnings += comparability.differences(base, others)
    warnings += [line for entry in entries for line in comparability.unparsed_warnings(entry, base.run.tasks)]
    paper = published_rows(base.run.model, published)
    boards = []
    for plan in task_groups(base.run):
        board, lines = _board(plan, base, others, paper, (correction, resamples, seed))
        boards.append(board)
        warnings += lines
    settings = {"correction": correction, "resamples": resamples, "seed": seed, "alpha": ALPHA}
    return Leaderboard(base, [base, *others], boards, list(dict.fromkeys(warnings)), settings)


def _check(base: RunEntry, others: Sequence[RunEntry]) -> None:
    for entry in others:
        common = [task for task in base.run.tasks if task in entry.run.tasks]
        if not common:
            raise RunError(
                f"{base.run.path} ({', '.join(base.run.tasks)}) and {entry.run.path} "
                f"({', '.join(entry.run.tasks)}) have no task in common"
            )
        for task in common:
            comparability.check_documents(base.run, entry.run, task)


def _board(
    plan: TaskGroup,
    base: RunEntry,
    others: Sequence[RunEntry],
    paper: Sequence[Any],
    options: tuple[str, int, int],
) -> tuple[Board, list[str]]:
    correction, resamples, seed = options
    parts: list[BoardPart] = []
    measured: dict[str, dict[str, NDArray[np.float64]]] = {}
    comparisons: list[Comparison] = []
    for name, tasks in plan.parts.items():
        present = [base, *(entry for entry in others if all(task in entry.run.tasks for task in tasks))]
        counts, part = count_part(name, tasks, present)
        parts.append(part)
        for entry, value in zip(present, mean_metrics(counts.sum(axis=1)), strict=True):
            measured.setdefault(entry.name, {})[name] = value
        if len(present) > 1:
            comparisons += compare_part(part, counts, present, resamples=resamples, seed=seed)
    comparisons = decide_verdicts(comparisons, correction)
    entries = [entry for entry in (base, *others) if entry.name in measured]
    rows = [*_measured_rows(entries, measured, parts), *_published(paper, parts)]
    lines = comparability.few_cluster_warnings(plan.name, parts)
    return Board(plan.name, parts, rows, comparisons), lines


def _measured_rows(
    entries: Sequence[RunEntry],
    measured: dict[str, dict[str, NDArray[np.float64]]],
    parts: Sequence[BoardPart],
) -> list[LeaderboardRow]:
    """One row a label, in the paper's order."""
    labels = dict.fromkeys(entry.label for entry in entries)
    rows = []
    for label in labels:
        members = [entry for entry in entries if entry.label == label]
        cells = {}
        for part in parts:
            found = [
                measured[entry.name][part.name] for entry in members if part.name in measured[entry.name]
            ]
            if found:
                cells[part.name] = {m: _cell(np.array(found)[:, METRICS.index(m)]) for m in part.metrics}
        gate = describe_gate(members[0].run)
        rows.append(LeaderboardRow(label, members[0].method, "measured", gate, cells))
    order = [*LABELS, "other"]
    return sorted(rows, key=lambda row: order.index(row.kind))


def _cell(values: NDArray[np.float64]) -> LeaderboardCell:
    sd = float(values.std(ddof=1)) if len(values) > 1 else None
    return LeaderboardCell(float(values.mean()), sd, len(values))


def _published(paper: Sequence[Any], parts: Sequence[BoardPart]) -> list[LeaderboardRow]:
    rows = []
    for row in paper:
        cells = {}
        for part in parts:
            given = row.cells.get(data_set_of(part.tasks))
            if given:
                cells[part.name] = {m: LeaderboardCell(mean, sd) for m, (mean, sd) in given.items()}
        if cells:
            gate = f"lam={row.lam:g}" if row.lam is not None else ""
            rows.append(
                LeaderboardRow(f"{LABELS[row.kind]}, {row.model}", row.kind, "published", gate, cells)
            )
    return rows


def _run_dict(entry: RunEntry) -> dict[str, Any]:
    run = entry.run
    return {
        "name": entry.name,
        "label": entry.label,
        "kind": entry.method,
        "path": str(run.path),
        "results_file": str(run.file),
        "host": run.harness,
        "model": run.model,
        "gate": run.gate,
        "facts": run.environment,
    }
