"""The tables of `truthgate correlate`: members, the matrix, and every pair."""

from __future__ import annotations

from collections.abc import Iterator

from truthgate_eval.analysis.formatting import format_interval, format_p_value, score_decimals
from truthgate_eval.analysis.heads.correlation import MEASURES, SCOPES, Measure, Scope
from truthgate_eval.analysis.heads.family import FamilyMatrix
from truthgate_eval.analysis.terminal_table import Column, TerminalTable

# More columns of the matrix, with names of a usual length, would not fit a terminal of 80 columns.
_MATRIX_COLUMNS = 8


def members_table(family: FamilyMatrix) -> TerminalTable:
    """The artifacts: label, family, model, probing task, site, kind of score, and mean score.

    A column in which no artifact states anything is left out.
    """
    stated = {
        "family": [member.family for member in family.members],
        **{
            key: [member.scores.metadata.get(key) for member in family.members]
            for key in ("model", "task", "site", "kind")
        },
    }
    shown = {name: values for name, values in stated.items() if any(values)}
    columns = [Column(name, justify="left", is_name=True) for name in ("artifact", *shown)]
    table = TerminalTable([*columns, Column("mean")])
    for row, member in enumerate(family.members):
        cells = (str(values[row] or "-") for values in shown.values())
        scores = member.scores.scores
        table.add_row(member.label, *cells, f"{scores.mean():.{score_decimals(float(abs(scores).max()))}f}")
    return table


def matrix_tables(
    family: FamilyMatrix, measure: Measure, scope: Scope | None = None
) -> Iterator[TerminalTable]:
    """The matrix: over all heads above the diagonal, within layers below it.

    A large matrix is more than one table, each with some of the columns.

    Args:
        family: The correlations.
        measure: Which of them are shown.
        scope: Show both measures of this scope instead: Pearson above the diagonal, Spearman below it.
    """
    if scope is None:
        title = f"{measure.capitalize()}: over all heads above the diagonal, within layers below"
        above, below = (family.coefficients(measure, one) for one in SCOPES)
    else:
        title = f"{scope.capitalize()}: Pearson above the diagonal, Spearman below"
        above, below = (family.coefficients(one, scope) for one in MEASURES)
    size = len(family.members)
    for start in range(0, size, _MATRIX_COLUMNS):
        columns = range(start, min(start + _MATRIX_COLUMNS, size))
        names = Column("", justify="left", is_name=True)
        table = TerminalTable([names, *(Column(str(column + 1)) for column in columns)], title=title)
        for row, member in enumerate(family.members):
            values = (below if column < row else above for column in columns)
            cells = [
                "" if column == row else f"{matrix[row, column]:.3f}"
                for column, matrix in zip(columns, values, strict=True)
            ]
            ends_family = row + 1 < size and family.members[row + 1].family != member.family
            table.add_row(f"{row + 1} {member.label}", *cells, end_section=ends_family)
        yield table


def pairs_table(family: FamilyMatrix, scope: Scope | None = None) -> TerminalTable:
    """Every coefficient with its interval, its p-value and, if there is more than one pair, Holm's.

    Args:
        family: The correlations.
        scope: Show those of this scope only.
    """
    has_holm = len(family.members) > 2
    interval = f"{100 * family.settings['confidence']:g} % interval"
    table = TerminalTable([
        Column("pair", justify="left", is_name=True),
        *([Column("heads", justify="left")] if scope is None else []),
        Column("measure", justify="left"),
        *(Column(title) for title in ("r", interval, "p", *(["Holm p"] if has_holm else []))),
    ])  # fmt: skip
    size = len(SCOPES) * len(MEASURES)
    for start in range(0, len(family.correlations), size):
        # One row of several lines per pair, so that a long label folds beside the numbers.
        own = [one for one in family.correlations[start : start + size] if scope in (None, one.scope)]
        columns: list[list[str]] = [
            [family.members[index].label for index in (own[0].first, own[0].second)],
            *([[str(one.scope) for one in own]] if scope is None else []),
            [one.measure.capitalize() for one in own],
            [f"{one.r:.3f}" for one in own],
            [format_interval(one.low, one.high) for one in own],
            [format_p_value(one.p) for one in own],
            *([[format_p_value(one.p_holm) for one in own]] if has_holm else []),
        ]
        table.add_row(*("\n".join(lines) for lines in columns), end_section=True)
    return table
