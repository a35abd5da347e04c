"""The text of a leaderboard: cells, titles and notes, for the terminal, files and the HTML report."""

from __future__ import annotations

import math

from truthgate_eval.analysis.formatting import (
    format_nats,
    format_p_value,
    format_percent,
    format_points,
    format_words,
)
from truthgate_eval.analysis.leaderboard.captions import TESTED as CHAIR_TESTED
from truthgate_eval.analysis.leaderboard.captions import CaptionComparison
from truthgate_eval.analysis.leaderboard.comparison import Comparison, Difference
from truthgate_eval.analysis.leaderboard.log_odds import TESTED, LogOddsComparison
from truthgate_eval.analysis.leaderboard.table import (
    Leaderboard,
    LeaderboardCell,
    LeaderboardRow,
    TaskLeaderboard,
)
from truthgate_eval.metrics.log_odds import LOSSES

_LOG_ODDS_NOTE = (
    " acc@t: accuracy at the threshold that is best on other clusters' documents. loss: mean log-loss, of "
    "which less is better; loss+b: the same with the yes/no offset that is best on other clusters' "
    "documents. p of AUROC, acc@t and log-loss: of the bootstrap, corrected within each of them."
)
_CHAIR_NOTE = (
    " CHAIRi: mentions of objects that are not on the image among all mentions; CHAIRs: captions with such a "
    "mention; less is better. rec: share of the objects on the images that are mentioned. words: of a "
    "caption. Their p: of the bootstrap, which draws images, corrected within each of them."
)
METRIC_TITLES = {
    "acc": "acc", "f1": "F1", "precision": "prec", "recall": "rec", "auroc": "AUROC",
    "acc_at_threshold": "acc@t", "log_loss": "loss", "log_loss_offset": "loss+b", "yes_ratio": "yes",
    "chair_s": "CHAIRs", "chair_i": "CHAIRi", "length": "words",
}  # fmt: skip


def metric_cell(cell: LeaderboardCell | None, metric: str = "acc") -> str:
    """`86.9`, `86.1 ± 0.2` for several runs, `-` for none; a log-loss is in nats, a length in words."""
    if cell is None or math.isnan(cell.mean):
        return "-"
    return format_figure(metric, cell.mean, cell.sd)


def format_figure(metric: str, value: float, sd: float | None = None) -> str:
    """A metric's value as text: a share in percent, a log-loss in nats, a length in words."""
    if metric == "length":
        return format_words(value, sd)
    return (format_nats if metric in LOSSES else format_percent)(value, sd)


def format_change(metric: str, value: float) -> str:
    """A difference of two values of a metric as text, in percentage points, nats or words."""
    if metric == "length":
        return format_words(value, sign=True)
    return format_nats(value, sign=True) if metric in LOSSES else format_points(value)


def difference_cell(difference: Difference | None, metric: str = "acc", *, separator: str = " ") -> str:
    """`+2.5 [+0.1, +4.9]`, or `-` for none.

    Args:
        difference: In shares of 1, in nats or in words.
        metric: Of which it is a difference.
        separator: Between the difference and its interval.
    """
    if difference is None or math.isnan(difference.value):
        return "-"
    low, high = (format_change(metric, bound) for bound in (difference.low, difference.high))
    return f"{format_change(metric, difference.value)}{separator}[{low}, {high}]"


def comparison_cells(one: Comparison) -> list[str]:
    """The cells of a comparison in files, under `COMPARISON_TITLES`."""
    counts = [str(n) for n in (one.questions, one.only_run, one.only_baseline)]
    differences = [difference_cell(one.differences.get(metric)) for metric in ("acc", "f1")]
    p_values = [format_p_value(p) for p in (one.p, one.p_corrected)]
    return [one.part, one.name, *counts, *differences, *p_values, one.verdict]


COMPARISON_TITLES = (
    "part", "run", "n", "gained", "lost", "acc difference", "F1 difference", "p", "corrected p", "verdict",
)  # fmt: skip


LOG_ODDS_TITLES = (
    "part", "run", "AUROC difference", "p", "acc@t difference", "p", "log-loss difference", "p",
    "loss+b difference", "p",
)  # fmt: skip


def log_odds_cells(one: LogOddsComparison) -> list[str]:
    """The cells of a comparison without a threshold in files, under `LOG_ODDS_TITLES`."""
    cells = [one.part, one.name]
    for metric in TESTED:
        test = one.tests[metric]
        cells += [difference_cell(test.difference, metric), format_p_value(test.p_corrected)]
    return cells


CAPTION_TITLES = (
    "part", "run", "CHAIRs difference", "p", "CHAIRi difference", "p", "rec difference", "p",
    "words difference",
)  # fmt: skip


def caption_cells(one: CaptionComparison) -> list[str]:
    """The cells of a comparison of captions in files, under `CAPTION_TITLES`."""
    cells = [one.part, one.name]
    for metric in CHAIR_TESTED:
        test = one.tests[metric]
        cells += [difference_cell(test.difference, metric), format_p_value(test.p_corrected)]
    return [*cells, difference_cell(one.length, "length")]


def row_label(row: LeaderboardRow) -> str:
    """A row's label, which says so if its figures are the paper's."""
    return f"published: {row.label}" if row.origin == "published" else row.label


def metrics_title(task: TaskLeaderboard) -> str:
    """The title above the metrics of a task leaderboard."""
    documents = sorted({part.documents for part in task.parts[:-1] or task.parts})
    count = str(documents[0]) if len(documents) == 1 else f"{documents[0]} to {documents[-1]}"
    percent = "percent, log-loss in nats" if _reads_log_odds(task) else "percent"
    percent += ", length in words" if _has_captions(task) else ""
    return f"{task.name}, {percent}, n = {count}{' a part' if len(task.parts) > 1 else ''}"


def comparisons_title(task: TaskLeaderboard, leaderboard: Leaderboard) -> str:
    """The title above the comparisons of a task leaderboard."""
    kinds = sorted({part.cluster_kind for part in task.parts})
    return f"{task.name}, against {leaderboard.baseline.name}, intervals by {' and '.join(kinds)}"


def log_odds_title(task: TaskLeaderboard, leaderboard: Leaderboard) -> str:
    """The title above the comparisons of a task leaderboard without a threshold."""
    return f"{task.name} by its log-odds, against {leaderboard.baseline.name}"


def captions_title(task: TaskLeaderboard, leaderboard: Leaderboard) -> str:
    """The title above the comparisons of a task leaderboard's captions."""
    return f"{task.name} by its captions, against {leaderboard.baseline.name}"


def _has_captions(task: TaskLeaderboard) -> bool:
    return any("chair_i" in part.metrics for part in task.parts)


def _reads_log_odds(task: TaskLeaderboard) -> bool:
    return any("auroc" in part.metrics for part in task.parts)


def footnote(leaderboard: Leaderboard) -> str:
    """What the columns mean, in a few sentences."""
    settings = leaderboard.settings
    level = f"{100 * (1 - settings.alpha):g} %"
    return (
        f"Differences are in percentage points, with {level} intervals of a cluster bootstrap "
        f"({settings.resamples} draws, seed {settings.seed}). gained, lost: questions that only the "
        "run, or only the baseline, got right. p: exact McNemar test on them, corrected "
        f"({settings.correction}) for all comparisons of a leaderboard. The verdict is on accuracy: there "
        "is a difference where test and interval agree. ± is the standard deviation over random gates."
        + (_LOG_ODDS_NOTE if any(_reads_log_odds(task) for task in leaderboard.task_leaderboards) else "")
        + (_CHAIR_NOTE if any(_has_captions(task) for task in leaderboard.task_leaderboards) else "")
    )
