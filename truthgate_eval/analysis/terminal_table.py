"""Tables for the terminal, whose long names fold between words so that a table fits the width."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from truthgate_eval.escaping import terminal_text

# In a cell: a space where the table is wide enough on one line, otherwise a line break.
SOFT_BREAK = "\v"
# The parts of a name without spaces, each with the signs that end it.
_PART = re.compile(r"[^-_/]*[-_/]+|[^-_/]+")


def fold_name(name: str, width: int) -> str:
    """A name in lines of at most `width` characters, broken at spaces, else after `-`, `_` or `/`.

    Only a part without any of these that is longer than a line is itself broken. Spaces in front of the name
    indent all lines.

    Example:
        >>> print(fold_name("some long_name", 10))
        some
        long_name
        >>> print(fold_name("some-long_name", 10))
        some-long_
        name
    """
    indent = name[: len(name) - len(name.lstrip(" "))]
    room = max(1, width - len(indent))
    lines = [""]
    for word in name.split():
        if len(f"{lines[-1]} {word}".lstrip()) <= room:
            lines[-1] = f"{lines[-1]} {word}".lstrip()
            continue
        lines.append("")
        for part in _PART.findall(word):
            if len(lines[-1] + part) > room:
                lines.append("")
            lines[-1] += part
            while len(lines[-1]) > room:
                lines[-1:] = [lines[-1][:room], lines[-1][room:]]
    return "\n".join(indent + line for line in lines if line)


def _folded(text: str, width: int, style: str) -> Text:
    """Lines of text that are folded like names."""
    return Text("\n".join(fold_name(line, width) for line in text.split("\n")), style=style)


def _longest_part(name: str) -> int:
    """The width that `fold_name` needs to break no part of a name."""
    indent = len(name) - len(name.lstrip(" "))
    return indent + max((len(part) for word in name.split() for part in _PART.findall(word)), default=0)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        header: Its title.
        justify: Where its cells stand.
        is_name: Whether its cells are names, which fold; all other cells keep their lines.
    """

    header: str
    justify: Literal["left", "right"] = "right"
    is_name: bool = False


@dataclass(frozen=True)
class _Row:
    cells: tuple[str, ...]
    style: str
    end_section: bool


@dataclass
class TerminalTable:
    """A table that rich can print: `console.print(table)`.

    Cells are plain text. They can have line breaks, and `SOFT_BREAK`, which the whole table takes for spaces
    or for line breaks.

    Attributes:
        columns: From left to right.
        title: Above the table.
        caption: Below the table.
    """

    columns: Sequence[Column]
    title: str = ""
    caption: str = ""
    _rows: list[_Row] = field(default_factory=list)

    def add_row(self, *cells: str, style: str = "", end_section: bool = False) -> None:
        """Append a row, with a rule below it if it ends a section; missing cells at the right are empty."""
        missing = len(self.columns) - len(cells)
        texts = map(terminal_text, (*cells, *[""] * missing))
        self._rows.append(_Row(tuple(texts), style, end_section))

    def rows(self, width: int) -> list[tuple[str, ...]]:
        """The cells as they are printed in a terminal of so many columns."""
        return self._layout(width)[0]

    def _layout(self, width: int) -> tuple[list[tuple[str, ...]], int]:
        """The cells as they are printed, and the number of spaces between two columns."""
        for gap, replacement in ((2, " "), (2, "\n"), (1, "\n")):
            widths, room = self._widths(replacement), width - gap * (len(self.columns) - 1)
            if sum(widths) <= room:
                break
        widths = self._fold_widths(widths, room)
        rows = []
        for row in self._rows:
            cells = [cell.replace(SOFT_BREAK, replacement) for cell in row.cells]
            for number, column in enumerate(self.columns):
                if column.is_name:
                    lines = cells[number].split("\n")
                    cells[number] = "\n".join(fold_name(line, widths[number]) for line in lines)
            rows.append(tuple(cells))
        return rows, gap

    def _widths(self, replacement: str) -> list[int]:
        """Of each column, the length of its longest line."""
        return [
            max(map(len, [column.header, *self._lines(number, replacement)]))
            for number, column in enumerate(self.columns)
        ]

    def _fold_widths(self, widths: list[int], room: int) -> list[int]:
        """Widths that add up to `room`, if names can be folded so far: the widest column gives first."""
        smallest = list(widths)
        for number, column in enumerate(self.columns):
            if column.is_name:
                parts = [_longest_part(line) for line in self._lines(number, "\n")]
                smallest[number] = max([len(column.header), *parts])
        folded = list(widths)
        while sum(folded) > room:
            foldable = [number for number, width in enumerate(folded) if width > smallest[number]]
            if not foldable:
                break
            folded[max(foldable, key=lambda number: folded[number])] -= 1
        return folded

    def _lines(self, number: int, replacement: str) -> Iterator[str]:
        for row in self._rows:
            yield from row.cells[number].replace(SOFT_BREAK, replacement).split("\n")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What rich prints; title and caption beside the table, since rich would fold them to its width."""
        rows, gap = self._layout(options.max_width)
        table = Table(
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, gap - 1, 0, 0),  # the box adds a space between columns
        )
        for column in self.columns:
            table.add_column(column.header, justify=column.justify, overflow="fold")
        for row, cells in zip(self._rows, rows, strict=True):
            table.add_row(
                *(Text(cell) for cell in cells), style=row.style or None, end_section=row.end_section
            )
        if self.title:
            yield _folded(terminal_text(self.title), options.max_width, "table.title")
        yield table
        if self.caption:
            yield _folded(terminal_text(self.caption), options.max_width, "table.caption")
        yield ""  # an empty line, which separates it from what follows
