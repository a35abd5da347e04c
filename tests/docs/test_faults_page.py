"""The table of faults in docs/reliability.md is made of docs/faults.json, in which nothing has failed."""

from __future__ import annotations

import json
from typing import Any

from scripts.faults.page import (
    FIGURES,
    PAGE,
    make_record,
    make_section,
    make_table,
    read_section,
    replace_section,
)
from scripts.faults.signals import Tally

FOUND: dict[str, Any] = json.loads(FIGURES.read_text(encoding="utf-8"))


def test_the_page_has_the_table_of_the_committed_figures() -> None:
    assert read_section(PAGE.read_text(encoding="utf-8")) == make_section(FOUND)


def test_every_fault_was_tried_and_survived() -> None:
    kinds = (
        "SIGKILL", "Ctrl-C", "removed", "out of memory", "NaN", "full disk", "read-only", "first starts",
    )  # fmt: skip
    for kind in kinds:
        assert any(kind in one["fault"] for one in FOUND["faults"]), kind
    assert all(one["survived"] == one["tried"] > 0 for one in FOUND["faults"])
    assert all("aborted" in one["observed"] for one in FOUND["faults"] if "Ctrl-C" in one["fault"])


def test_the_table_has_what_was_counted() -> None:
    tally = Tally("a fault", "tiny")
    for case, failure in (("1", None), ("2", "half an artifact"), ("3", None)):
        tally.add(case, failure)
        tally.see("one line")
    tally.see("twice")
    assert (
        make_table([make_record(tally, 0.1)]).splitlines()[2]
        == "| a fault | tiny | 3 | 2 | one line; twice: 1 |"
    )
    assert tally.failures == ["2: half an artifact"]


def test_only_the_section_is_written_anew() -> None:
    page = PAGE.read_text(encoding="utf-8")
    changed = replace_section(page, "other\n")
    assert read_section(changed) == "other\n"
    assert replace_section(changed, read_section(page)) == page
