r"""Text of models, data and files in what is printed and written: one function for each kind of output.

Names of models, tasks and runs, questions and answers are written by others. A terminal must not obey them,
and a table must not fall apart: control characters and marks that turn the direction of text become visible
(`\x1b`, `\u202e`), and an output's own signs are escaped. HTML is escaped by jinja2.
"""

from __future__ import annotations

import re
from typing import Any

# Control characters, but not the line break and the tab; direction marks, embeddings and isolates; separators
# of lines and paragraphs; halves of characters, which no file takes.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff]"
)
_MARKDOWN = re.compile(r"([|\\`*_<>\[\]&~#!$])")
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    # At the start of a row, \\ in front of it would take [ for a distance, and * for a part of itself.
    "[": "{[}", "*": "{*}", **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip
# With these in front, spreadsheets take the text of a cell for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def visible(text: str) -> str:
    r"""Text whose control characters and direction marks are written out; line breaks and tabs stay.

    Example:
        >>> print(visible("\x1b[31mred\x07"))
        \x1b[31mred\x07
    """
    return _INVISIBLE.sub(_write_out, text)


def _write_out(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


def visible_values(value: Any) -> Any:
    """A value of JSON in which every text, and every name in an object, is `visible`."""
    if isinstance(value, dict):
        return {visible_values(name): visible_values(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [visible_values(item) for item in value]
    return visible(value) if isinstance(value, str) else value


def terminal_text(text: str) -> str:
    r"""Text for a terminal. A vertical tab stays: tables break their lines there.

    Example:
        >>> print(terminal_text("\x1b]0;title\x07"))
        \x1b]0;title\x07
    """
    return "\v".join(visible(part) for part in text.split("\v"))


def markdown_text(text: str) -> str:
    r"""Text in which Markdown's own signs are escaped, on one line.

    Example:
        >>> print(markdown_text("a|b_c"))
        a\|b\_c
    """
    return _MARKDOWN.sub(r"\\\1", visible(" ".join(text.split())))


def latex_text(text: str) -> str:
    r"""Text in which LaTeX's own signs are escaped, on one line.

    Example:
        >>> print(latex_text("50% & TruthProbe_LLM"))
        50\% \& TruthProbe\_LLM
    """
    escaped = "".join(_LATEX.get(sign, sign) for sign in visible(" ".join(text.split())))
    return escaped.replace("±", r"$\pm$").replace("\u2212", "$-$")


def csv_value(value: Any) -> Any:
    """A value for a cell of CSV: a number as it is, a text on one line and never taken for a formula.

    Example:
        >>> csv_value("=cmd|' /C calc'!A0"), csv_value(-0.5)
        ("'=cmd|' /C calc'!A0", -0.5)
    """
    if not isinstance(value, str):
        return value
    text = visible(value)
    text = f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text
    return " ".join(text.splitlines())


def plot_text(text: str) -> str:
    r"""Text for a figure of matplotlib, which takes what stands between dollar signs for a formula.

    Example:
        >>> print(plot_text(r"$\frac{model"))
        \$\frac{model
    """
    return visible(text).replace("$", r"\$")
