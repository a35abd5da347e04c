"""A leaderboard for people: in the terminal, as Markdown, CSV and LaTeX.

Markdown and LaTeX have the paper's layout, methods by data sets; the terminal, which is narrow, has a row
for each. Shares of 1 become percent. Published figures stand below a rule, each row marked.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence

from rich import box
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from truthgate_eval.analysis.leaderboard.comparison import BoardPart, Comparison
from truthgate_eval.analysis.leaderboard.table import Board, Leaderboard, LeaderboardCell, LeaderboardRow

NAMES = {"acc": "acc", "f1": "F1", "precision": "prec", "recall": "rec"}
_CSV_COLUMNS = (
    "board", "part", "run", "origin", "gate", "quantity", "value", "sd", "runs", "low", "high", "p",
    "p_corrected", "verdict",
)  # fmt: skip
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    # A row that starts with [ would be read as the distance to the row before it.
    "[": "{[}", **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip
_PAIRED = (
    "part", "run", "n", "gained", "lost", "acc difference", "F1 difference", "p", "corrected p", "verdict",
)  # fmt: skip


def terminal_tables(leaderboard: Leaderboard) -> Iterator[Table]:
    """For each leaderboard the metrics, then the paired comparisons; 80 columns are enough."""
    for board in leaderboard.boards:
        metrics = max((part.metrics for part in board.parts), key=len)
        table = _table(_title(board), [NAMES[metric] for metric in metrics])
        for part in board.parts:
            _part_heading(table, part)
            for row in board.rows:
                if part.name in row.cells:
                    values = [percent(row.cells[part.name].get(metric)) for metric in metrics]
                    style = "italic" if row.origin == "published" else None
                    table.add_row(
                        Padding(Text(_marked(row), overflow="fold"), (0, 0, 0, 2)), *values, style=style
                    )
        gates = [f"{_marked(row)}: {row.gate}" for row in board.rows if row.gate]
        table.caption = escape("\n".join(gates))
        yield table
        if board.comparisons:
            yield _paired_table(board, leaderboard)


def _paired_table(board: Board, leaderboard: Leaderboard) -> Table:
    # The plain p-value is left to the files: two of them in a narrow table are misread.
    table = _table(_paired_title(board, leaderboard), ["gained", "lost", "acc diff", "F1 diff", "p"])
    table.add_column("verdict", min_width=len("difference"))
    for part in board.parts:
        _part_heading(table, part)
        for one in board.comparisons:
            if one.part == part.name:
                _, run, _, *counts_and_differences, _, corrected, verdict = _paired_cells(one)
                cells = [escape(cell) for cell in (*counts_and_differences, corrected, verdict)]
                table.add_row(_indented(run), *cells)
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.caption_justify = "left"
    table.add_column("", overflow="fold", min_width=16)
    for name in columns:
        # Only an interval may be broken, behind its comma; a figure never.
        table.add_column(name, justify="right", no_wrap=not name.endswith("diff"), min_width=len(name))
    return table


def _indented(name: str) -> Padding:
    return Padding(Text(name, overflow="fold"), (0, 0, 0, 2))


def _part_heading(table: Table, part: BoardPart) -> None:
    table.add_section()
    table.add_row(Text(part.name, style="bold", overflow="fold"))


def markdown(leaderboard: Leaderboard) -> str:
    """GitHub-flavoured Markdown."""
    lines: list[str] = ["# Leaderboard", ""]
    for board in leaderboard.boards:
        columns = _columns(board)
        head = ["", "gate", *(f"{_part_name(board, part)}{NAMES[metric]}" for part, metric in columns)]
        lines += [f"## {_title(board)}", "", *_markdown_table(head, _wide_rows(board, _markdown_cell), 2), ""]
        if board.comparisons:
            rows = [[_markdown_cell(cell) for cell in _paired_cells(one)] for one in board.comparisons]
            lines += [f"{_paired_title(board, leaderboard)}:", "", *_markdown_table(_PAIRED, rows, 2), ""]
    lines += [footnote(leaderboard), ""]
    lines += [f"* {_markdown_cell(warning)}" for warning in leaderboard.warnings]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> list[str]:
    rule = ["---" if n < left else "---:" for n in range(len(head))]
    return [f"| {' | '.join(line)} |" for line in (head, rule, *rows)]


def _markdown_cell(text: str) -> str:
    return re.sub(r"([|\\`*_<>\[\]])", r"\\\1", " ".join(text.split()))


def latex(leaderboard: Leaderboard) -> str:
    """A table environment a leaderboard, and one for its comparisons; to be included after booktabs."""
    lines = ["% needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}", ""]
    for board in leaderboard.boards:
        columns = _columns(board)
        groups = [(part.name, sum(p is part for p, _ in columns)) for part in board.parts]
        head, start, rules = "", 3, ""
        for name, width in groups:
            head += f" & \\multicolumn{{{width}}}{{c}}{{{latex_text(name)}}}"
            rules += f"\\cmidrule(lr){{{start}-{start + width - 1}}}"
            start += width
        body = [
            f" &{head} \\\\", rules, " & ".join(["", "gate", *(NAMES[m] for _, m in columns)]) + " \\\\"
        ]  # fmt: skip
        origins = [row.origin for row in board.rows]
        rows = _wide_rows(board, latex_text)
        for n, row in enumerate(rows):
            if n == 0 or origins[n] != origins[n - 1]:
                body.append("\\midrule")
            body.append(" & ".join(row) + " \\\\")
        lines += _latex_table("ll" + "r" * len(columns), body, _title(board))
        if board.comparisons:
            body = [" & ".join(_PAIRED) + " \\\\", "\\midrule"]
            for one in board.comparisons:
                body.append(" & ".join(latex_text(cell) for cell in _paired_cells(one)) + " \\\\")
            lines += _latex_table(
                "ll" + "r" * (len(_PAIRED) - 3) + "l", body, _paired_title(board, leaderboard)
            )
    return "\n".join(lines)


def _latex_table(columns: str, body: Sequence[str], caption: str) -> list[str]:
    return [
        "\\begin{table}", "\\centering\\small", f"\\caption{{{latex_text(caption)}}}",
        f"\\begin{{tabular}}{{{columns}}}", "\\toprule", *body, "\\bottomrule", "\\end{tabular}",
        "\\end{table}", "",
    ]  # fmt: skip


def latex_text(text: str) -> str:
    """Text in which LaTeX's own signs are written out."""
    escaped = "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))
    return escaped.replace("±", r"$\pm$").replace("\u2212", "$-$")


def as_csv(leaderboard: Leaderboard) -> str:
    """One line a figure, as shares of 1: metrics first, then differences to the baseline."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for board in leaderboard.boards:
        for row in board.rows:
            about = {"board": board.name, "run": row.label, "origin": row.origin, "gate": row.gate}
            for part, cells in row.cells.items():
                for metric, cell in cells.items():
                    value = {"value": cell.mean, "sd": cell.sd, "runs": cell.runs}
                    writer.writerow({**about, "part": part, "quantity": metric, **value})
        for one in board.comparisons:
            for metric, difference in one.differences.items():
                about = {"board": board.name, "part": one.part, "run": one.name, "origin": "measured"}
                value = {"value": difference.value, "low": difference.low, "high": difference.high}
                test = {"p": one.p, "p_corrected": one.p_corrected, "verdict": one.verdict}
                # The test is on right and wrong answers: it says nothing of F1.
                test = test if metric == "acc" else {}
                writer.writerow({**about, "quantity": f"{metric} difference", **value, **test})
    return text.getvalue()


def percent(cell: LeaderboardCell | None) -> str:
    """`86.9`, or `86.1 ± 0.2` for several runs."""
    if cell is None:
        return "-"
    spread = "" if cell.sd is None else f" ± {100 * cell.sd:.1f}"
    return f"{100 * cell.mean:.1f}{spread}"


def _paired_cells(one: Comparison) -> list[str]:
    differences = []
    for metric in ("acc", "f1"):
        found = one.differences.get(metric)
        low, high = (found.low, found.high) if found else (0, 0)
        differences.append(f"{_points(found.value)} [{_points(low)}, {_points(high)}]" if found else "-")
    counts = [str(n) for n in (one.questions, one.only_run, one.only_baseline)]
    return [one.part, one.name, *counts, *differences, _p(one.p), _p(one.p_corrected), one.verdict]


def _points(share: float) -> str:
    return f"{100 * share:+.1f}" if round(100 * share, 1) else "0.0"


def _p(value: float) -> str:
    return "<0.0001" if value < 0.0001 else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"


def _wide_rows(board: Board, write: Callable[[str], str]) -> list[list[str]]:
    """The paper's layout: a row a method, a column a part and metric."""
    rows = []
    for row in board.rows:
        values = [percent(row.cells.get(part.name, {}).get(metric)) for part, metric in _columns(board)]
        rows.append([write(_marked(row)), write(row.gate), *(write(value) for value in values)])
    return rows


def _columns(board: Board) -> list[tuple[BoardPart, str]]:
    """The parts' metrics; without precision where the paper's table of such questions has none."""
    about_pictures = board.name.startswith(("pope", "poll")) and len(board.parts) > 1
    left_out = "precision" if about_pictures else ""
    return [(part, metric) for part in board.parts for metric in part.metrics if metric != left_out]


def _part_name(board: Board, part: BoardPart) -> str:
    return f"{_markdown_cell(part.name)} " if len(board.parts) > 1 else ""


def _marked(row: LeaderboardRow) -> str:
    return f"published: {row.label}" if row.origin == "published" else row.label


def _title(board: Board) -> str:
    documents = sorted({part.documents for part in board.parts[:-1] or board.parts})
    count = str(documents[0]) if len(documents) == 1 else f"{documents[0]} to {documents[-1]}"
    return f"{board.name}, percent, n = {count}{' a part' if len(board.parts) > 1 else ''}"


def _paired_title(board: Board, leaderboard: Leaderboard) -> str:
    kinds = sorted({part.cluster_kind for part in board.parts})
    return f"{board.name}, against {leaderboard.baseline.name}, intervals by {' and '.join(kinds)}"


def footnote(leaderboard: Leaderboard) -> str:
    """What the columns mean, in a few sentences."""
    settings = leaderboard.settings
    level = f"{100 * (1 - settings['alpha']):g} %"
    return (
        f"Differences are in percentage points, with {level} intervals of a cluster bootstrap "
        f"({settings['resamples']} draws, seed {settings['seed']}). gained, lost: questions that only the "
        "run, or only the baseline, got right. p: exact McNemar test on them, corrected "
        f"({settings['correction']}) for all comparisons of a leaderboard. The verdict is on accuracy: there "
        "is a difference where test and interval agree. ± is the standard deviation over random gates."
    )
