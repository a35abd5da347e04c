"""A leaderboard as a file: Markdown, LaTeX and CSV.

Markdown and LaTeX have the paper's layout, methods by data sets, in percent. Published figures are marked row
by row, and stand below the measured ones. CSV has shares of 1, and lengths of captions in words.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from truthgate_eval.analysis.leaderboard.captions import CaptionComparison
from truthgate_eval.analysis.leaderboard.cells import (
    CAPTION_TITLES,
    COMPARISON_TITLES,
    LOG_ODDS_TITLES,
    METRIC_TITLES,
    caption_cells,
    captions_title,
    comparison_cells,
    comparisons_title,
    footnote,
    log_odds_cells,
    log_odds_title,
    metric_cell,
    metrics_title,
    row_label,
)
from truthgate_eval.analysis.leaderboard.comparison import Difference, LeaderboardPart
from truthgate_eval.analysis.leaderboard.log_odds import LogOddsComparison
from truthgate_eval.analysis.leaderboard.table import Leaderboard, TaskLeaderboard
from truthgate_eval.escaping import csv_value, latex_text, markdown_text

_CSV_COLUMNS = (
    "board", "part", "run", "origin", "gate", "quantity", "value", "sd", "runs", "low", "high", "p",
    "p_corrected", "verdict",
)  # fmt: skip


def markdown(leaderboard: Leaderboard) -> str:
    """GitHub-flavoured Markdown."""
    lines: list[str] = ["# Leaderboard", ""]
    for task in leaderboard.task_leaderboards:
        prefix = {
            part.name: f"{markdown_text(part.name)} " if len(task.parts) > 1 else "" for part in task.parts
        }
        head = [f"{prefix[part.name]}{METRIC_TITLES[metric]}" for part, metric in _columns(task)]
        lines += [f"## {markdown_text(metrics_title(task))}", ""]
        lines += [*_markdown_table(["", "gate", *head], _metric_rows(task, markdown_text)), ""]
        if task.comparisons:
            rows = [[markdown_text(cell) for cell in comparison_cells(one)] for one in task.comparisons]
            lines += [f"{markdown_text(comparisons_title(task, leaderboard))}:", ""]
            lines += [*_markdown_table(COMPARISON_TITLES, rows), ""]
        if task.log_odds:
            rows = [[markdown_text(cell) for cell in log_odds_cells(one)] for one in task.log_odds]
            lines += [f"{markdown_text(log_odds_title(task, leaderboard))}:", ""]
            lines += [*_markdown_table(LOG_ODDS_TITLES, rows), ""]
            lines += [*(f"* {markdown_text(one.conclusion)}" for one in task.log_odds), ""]
        if task.captions:
            rows = [[markdown_text(cell) for cell in caption_cells(one)] for one in task.captions]
            lines += [f"{markdown_text(captions_title(task, leaderboard))}:", ""]
            lines += [*_markdown_table(CAPTION_TITLES, rows), ""]
    lines += [footnote(leaderboard), ""]
    lines += [f"* {markdown_text(warning)}" for warning in leaderboard.warnings]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table whose first two columns are text."""
    rule = ["---" if n < 2 else "---:" for n in range(len(head))]
    return [f"| {' | '.join(line)} |" for line in (head, rule, *rows)]


def latex(leaderboard: Leaderboard) -> str:
    """A table environment for each task leaderboard, and one for its comparisons; they need booktabs."""
    lines = ["% needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}", ""]
    for task in leaderboard.task_leaderboards:
        lines += _latex_metrics(task)
        if task.comparisons:
            rows = [_latex_row(map(latex_text, comparison_cells(one))) for one in task.comparisons]
            body = [_latex_row(COMPARISON_TITLES), "\\midrule", *rows]
            alignment = "ll" + "r" * (len(COMPARISON_TITLES) - 3) + "l"
            lines += _latex_table(alignment, body, comparisons_title(task, leaderboard))
        if task.log_odds:
            rows = [_latex_row(map(latex_text, log_odds_cells(one))) for one in task.log_odds]
            body = [_latex_row(LOG_ODDS_TITLES), "\\midrule", *rows]
            alignment = "ll" + "r" * (len(LOG_ODDS_TITLES) - 2)
            lines += _latex_table(alignment, body, log_odds_title(task, leaderboard))
            lines += [latex_text(one.conclusion) + "\\par" for one in task.log_odds] + [""]
        if task.captions:
            rows = [_latex_row(map(latex_text, caption_cells(one))) for one in task.captions]
            body = [_latex_row(CAPTION_TITLES), "\\midrule", *rows]
            alignment = "ll" + "r" * (len(CAPTION_TITLES) - 2)
            lines += _latex_table(alignment, body, captions_title(task, leaderboard))
    return "\n".join(lines)


def _latex_metrics(task: TaskLeaderboard) -> list[str]:
    columns = _columns(task)
    groups, rules, start = "", "", 3
    for part in task.parts:
        width = sum(own is part for own, _ in columns)
        groups += f" & \\multicolumn{{{width}}}{{c}}{{{latex_text(part.name)}}}"
        rules += f"\\cmidrule(lr){{{start}-{start + width - 1}}}"
        start += width
    body = [f" &{groups} \\\\", rules, _latex_row(["", "gate", *(METRIC_TITLES[m] for _, m in columns)])]
    origin = ""
    for row, cells in zip(task.rows, _metric_rows(task, latex_text), strict=True):
        if row.origin != origin:
            body.append("\\midrule")
        origin = row.origin
        body.append(_latex_row(cells))
    return _latex_table("ll" + "r" * len(columns), body, metrics_title(task))


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + " \\\\"


def _latex_table(alignment: str, body: Sequence[str], caption: str) -> list[str]:
    return [
        "\\begin{table}", "\\centering\\small", f"\\caption{{{latex_text(caption)}}}",
        f"\\begin{{tabular}}{{{alignment}}}", "\\toprule", *body, "\\bottomrule", "\\end{tabular}",
        "\\end{table}", "",
    ]  # fmt: skip


def as_csv(leaderboard: Leaderboard) -> str:
    """One line per figure, as shares of 1: metrics first, then differences to the baseline."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for line in _csv_lines(leaderboard):
        writer.writerow({name: csv_value(value) for name, value in line.items()})
    return text.getvalue()


def _csv_lines(leaderboard: Leaderboard) -> Iterator[dict[str, Any]]:
    for task in leaderboard.task_leaderboards:
        for row in task.rows:
            about = {"board": task.name, "run": row.label, "origin": row.origin, "gate": row.gate}
            for part, cells in row.cells.items():
                for metric, cell in cells.items():
                    value = {"value": cell.mean, "sd": cell.sd, "runs": cell.runs}
                    yield {**about, "part": part, "quantity": metric, **value}
        for one in task.comparisons:
            for metric, difference in one.differences.items():
                about = {"board": task.name, "part": one.part, "run": one.name, "origin": "measured"}
                # The test compares right and wrong answers: it is not a test of F1.
                test = {"p": one.p, "p_corrected": one.p_corrected, "verdict": one.verdict}
                test = test if metric == "acc" else {}
                yield {**about, "quantity": f"{metric} difference", **_value(difference), **test}
        others: list[LogOddsComparison | CaptionComparison] = [*task.log_odds, *task.captions]
        for compared in others:
            about = {"board": task.name, "part": compared.part, "run": compared.name, "origin": "measured"}
            for metric, tested in compared.tests.items():
                test = {"p": tested.p, "p_corrected": tested.p_corrected, "verdict": tested.verdict}
                yield {**about, "quantity": f"{metric} difference", **_value(tested.difference), **test}
            if isinstance(compared, CaptionComparison):
                yield {**about, "quantity": "length difference", **_value(compared.length)}


def _value(difference: Difference) -> dict[str, float]:
    return {"value": difference.value, "low": difference.low, "high": difference.high}


def _metric_rows(task: TaskLeaderboard, escape: Callable[[str], str]) -> list[list[str]]:
    """The paper's layout: a row per method, a column per part and metric."""
    rows = []
    for row in task.rows:
        cells = [
            metric_cell(row.cells.get(part.name, {}).get(metric), metric) for part, metric in _columns(task)
        ]
        rows.append([escape(text) for text in (row_label(row), row.gate, *cells)])
    return rows


def _columns(task: TaskLeaderboard) -> list[tuple[LeaderboardPart, str]]:
    """The parts' metrics; without precision where the paper's table of such questions has none."""
    has_precision = not (task.name.startswith(("pope", "poll")) and len(task.parts) > 1)
    return [
        (part, metric)
        for part in task.parts
        for metric in part.metrics
        if has_precision or metric != "precision"
    ]
