"""docs/engines.md is what the engines give."""

from __future__ import annotations

import re
from typing import Any

import pytest

from scripts.engines import engines
from scripts.engines.engines import ENGINES, measure
from scripts.engines.models import CLASSES
from scripts.engines.page import HEADER, PAGE, page, rows_of_page, table_row
from truthgate_eval.gating.attention_layout import SITES

TEXT = PAGE.read_text(encoding="utf-8")
COMMITTED = dict(rows_of_page(TEXT))
# Float32, of logits near 10: rounding in other places. In bfloat16 it is 2^16 times as large.
ROUNDING, ROUNDING_IN_BFLOAT16 = 1e-4, 0.5


def check_cell(cell: str, gate: float) -> None:
    """A number is rounding, and far less than what the gate does; a text says why there is none."""
    if re.fullmatch(r"0|[\d.]+e[-+]\d+†?", cell):
        value = float(cell.rstrip("†"))
        assert value < (ROUNDING_IN_BFLOAT16 if "†" in cell else ROUNDING) and value < gate / 4
    else:
        assert cell in ("text models only", "image models only")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in CLASSES])
def test_the_engines_give_the_logits_of_the_live_gate(name: str) -> None:
    for (found_name, site), row in measure(name).items():
        cells = table_row(found_name, site, row).strip("| ").split(" | ")[2:]
        committed = COMMITTED[found_name, site]
        for engine, cell, before in zip(HEADER[2:], cells, committed, strict=True):
            if engine == "gate":
                assert float(cell) == pytest.approx(float(before), rel=0.1)
            else:
                check_cell(cell, float(cells[0]))
                assert cell[-1].isdigit() == before[-1].isdigit() and ("†" in cell) == ("†" in before)


def test_the_page_has_every_class_at_both_sites_and_no_engine_differs() -> None:
    assert list(COMMITTED) == [(name, site) for name in CLASSES for site in SITES]
    for cells in COMMITTED.values():
        assert float(cells[0]) > 0.1
        for cell in cells[1:]:
            check_cell(cell, float(cells[0]))
    assert sum(cell[-1].isdigit() or "†" in cell for cells in COMMITTED.values() for cell in cells[1:]) >= 92


def test_an_engine_without_the_gate_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "ENGINES", {"folded": engines.vanilla})
    row = measure("LlamaForCausalLM")["LlamaForCausalLM", "post"]
    assert row["folded"] == row["gate"]
    with pytest.raises(AssertionError):
        check_cell(f"{row['folded']:.1e}", float(row["gate"]))


def test_a_page_of_rows_has_them() -> None:
    row: dict[str, Any] = dict.fromkeys(["gate", *ENGINES], 0.25)
    found = dict(rows_of_page(page({("LlamaForCausalLM", "post"): row})))
    assert list(found) == [("LlamaForCausalLM", "post")] and set(found["LlamaForCausalLM", "post"]) == {
        "2.5e-01"
    }
