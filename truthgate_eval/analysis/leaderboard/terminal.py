"""A leaderboard in the terminal: tables that fit 80 columns, with one row for each part and run."""

from __future__ import annotations

from collections.abc import Iterator

from truthgate_eval.analysis.formatting import format_p_value
from truthgate_eval.analysis.leaderboard.captions import TESTED as CHAIR_TESTED
from truthgate_eval.analysis.leaderboard.cells import (
    METRIC_TITLES,
    captions_title,
    comparisons_title,
    difference_cell,
    log_odds_title,
    metric_cell,
    metrics_title,
    row_label,
)
from truthgate_eval.analysis.leaderboard.log_odds import TESTED
from truthgate_eval.analysis.leaderboard.table import Leaderboard, TaskLeaderboard
from truthgate_eval.analysis.terminal_table import SOFT_BREAK, Column, TerminalTable

_NAMES = Column("", justify="left", is_name=True)


def terminal_tables(leaderboard: Leaderboard) -> Iterator[TerminalTable]:
    """For each task leaderboard a table of the metrics, and tables of the paired comparisons."""
    for task in leaderboard.task_leaderboards:
        yield _metrics_table(task)
        if task.comparisons:
            yield _comparisons_table(task, leaderboard)
        if task.log_odds:
            yield _log_odds_table(task, leaderboard)
        if task.captions:
            yield _captions_table(task, leaderboard)


def _metrics_table(task: TaskLeaderboard) -> TerminalTable:
    metrics = max((part.metrics for part in task.parts), key=len)
    columns = [_NAMES, *(Column(METRIC_TITLES[metric]) for metric in metrics)]
    gates = [f"{row_label(row)}: {row.gate}" for row in task.rows if row.gate]
    table = TerminalTable(columns, title=metrics_title(task), caption="\n".join(gates))
    for part in task.parts:
        rows = [row for row in task.rows if part.name in row.cells]
        table.add_row(part.name, style="bold")
        for row in rows:
            cells = [metric_cell(row.cells[part.name].get(metric), metric) for metric in metrics]
            style = "italic" if row.origin == "published" else ""
            table.add_row(f"  {row_label(row)}", *cells, style=style, end_section=row is rows[-1])
    return table


def _comparisons_table(task: TaskLeaderboard, leaderboard: Leaderboard) -> TerminalTable:
    # The p-value before its correction is in files only: two p-values in a narrow table are easily confused.
    titles = ("gained", "lost", "acc diff", "F1 diff", "p")
    columns = [_NAMES, *map(Column, titles), Column("verdict", justify="left")]
    table = TerminalTable(columns, title=comparisons_title(task, leaderboard))
    for part in task.parts:
        own = [one for one in task.comparisons if one.part == part.name]
        table.add_row(part.name, style="bold")
        for one in own:
            table.add_row(
                f"  {one.name}",
                str(one.only_run),
                str(one.only_baseline),
                *(
                    difference_cell(one.differences.get(metric), separator=SOFT_BREAK)
                    for metric in ("acc", "f1")
                ),
                format_p_value(one.p_corrected),
                one.verdict.replace(" ", SOFT_BREAK),
                end_section=one is own[-1],
            )
    return table


def _log_odds_table(task: TaskLeaderboard, leaderboard: Leaderboard) -> TerminalTable:
    titles = [title for metric in TESTED for title in (f"{METRIC_TITLES[metric]} diff", "p")]
    table = TerminalTable([_NAMES, *map(Column, titles)], title=log_odds_title(task, leaderboard))
    for part in task.parts:
        own = [one for one in task.log_odds if one.part == part.name]
        if own:
            table.add_row(part.name, style="bold")
        for one in own:
            cells = []
            for metric in TESTED:
                test = one.tests[metric]
                cells.append(difference_cell(test.difference, metric, separator=SOFT_BREAK))
                cells.append(format_p_value(test.p_corrected))
            table.add_row(f"  {one.name}", *cells, end_section=one is own[-1])
    return table


def _captions_table(task: TaskLeaderboard, leaderboard: Leaderboard) -> TerminalTable:
    titles = [title for metric in CHAIR_TESTED for title in (f"{METRIC_TITLES[metric]} diff", "p")]
    columns = [_NAMES, *map(Column, titles), Column(f"{METRIC_TITLES['length']} diff")]
    table = TerminalTable(columns, title=captions_title(task, leaderboard))
    for part in task.parts:
        own = [one for one in task.captions if one.part == part.name]
        if own:
            table.add_row(part.name, style="bold")
        for one in own:
            cells = []
            for metric in CHAIR_TESTED:
                test = one.tests[metric]
                cells.append(difference_cell(test.difference, metric, separator=SOFT_BREAK))
                cells.append(format_p_value(test.p_corrected))
            cells.append(difference_cell(one.length, "length", separator=SOFT_BREAK))
            table.add_row(f"  {one.name}", *cells, end_section=one is own[-1])
    return table
