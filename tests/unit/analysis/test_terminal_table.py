"""Tables that fit a terminal's width without breaking words."""

from __future__ import annotations

import pytest
from helpers.leaderboards import printed
from hypothesis import given
from hypothesis import strategies as st

from truthgate_eval.analysis.terminal_table import SOFT_BREAK, Column, TerminalTable, fold_name

NAMES = st.text("ab-_/ ", max_size=30)


@pytest.mark.parametrize(
    ("name", "width", "lines"),
    [
        ("base-halueval", 13, ["base-halueval"]),
        ("base-halueval", 12, ["base-", "halueval"]),
        ("TruthProbe_MLLM", 12, ["TruthProbe_", "MLLM"]),
        ("published: TruthProbe_LLM, vicuna-7b", 30, ["published: TruthProbe_LLM,", "vicuna-7b"]),
        ("  a long name", 9, ["  a long", "  name"]),
        ("halueval", 5, ["halue", "val"]),
        ("", 5, [""]),
    ],
)
def test_names_fold_at_spaces_else_after_hyphens_and_underscores(
    name: str, width: int, lines: list[str]
) -> None:
    assert fold_name(name, width).split("\n") == lines


@given(NAMES, st.integers(5, 20))
def test_a_folded_name_has_all_its_characters_and_fits(name: str, width: int) -> None:
    name = name.strip()
    folded = fold_name(name, width)
    assert folded.replace("\n", "").replace(" ", "") == name.replace(" ", "")
    assert all(len(line) <= width for line in folded.split("\n"))


def table() -> TerminalTable:
    made = TerminalTable([Column("run", justify="left", is_name=True), Column("acc"), Column("verdict")])
    made.add_row("some-long-name", f"+1.0{SOFT_BREAK}[+0.5, +1.5]", f"no{SOFT_BREAK}difference")
    return made


def test_soft_breaks_are_spaces_where_the_table_is_wide_enough() -> None:
    assert table().rows(80) == [("some-long-name", "+1.0 [+0.5, +1.5]", "no difference")]


def test_in_a_narrow_terminal_soft_breaks_come_before_folded_names() -> None:
    assert table().rows(45) == [("some-long-name", "+1.0\n[+0.5, +1.5]", "no\ndifference")]
    assert table().rows(35) == [("some-long-\nname", "+1.0\n[+0.5, +1.5]", "no\ndifference")]


def test_a_title_is_as_wide_as_the_terminal_and_not_as_the_table() -> None:
    title = "a title which is longer than the table below it, and a caption"
    made = TerminalTable([Column("a"), Column("b")], title=title, caption=f"{title}\n{title}")
    made.add_row("1", "2")
    assert printed(made).splitlines() == [title, "a  b", "────", "1  2", title, title, ""]
    narrow = printed(made, width=24).splitlines()
    assert narrow[:3] == ["a title which is longer", "than the table below it,", "and a caption"]


@pytest.mark.parametrize("width", range(32, 60))
def test_a_table_is_never_wider_than_the_terminal(width: int) -> None:
    text = printed(table(), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert all(word in text for word in ("some-", "long-", "name", "[+0.5, +1.5]", "difference"))
