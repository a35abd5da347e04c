"""docs/tasks.md: the tables of CHAIR on the packaged models are those of docs/chair.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
sys.path.insert(0, str(DOCS.parent / "studies"))  # scripts, which import each other by name

import make_chair  # noqa: E402

RESULTS = json.loads((DOCS / "chair.json").read_text(encoding="utf-8"))


def test_the_page_has_the_tables_of_its_data() -> None:
    page = (DOCS / "tasks.md").read_text(encoding="utf-8")
    written = page.split(make_chair.BEGIN)[1].split(make_chair.END)[0]
    assert written == make_chair.tables(RESULTS)
    studies = json.loads((DOCS / "study.json").read_text(encoding="utf-8"))["studies"]
    for name in make_chair.STUDIES:
        [(model, study)] = studies[name]["models"].items()
        lams = make_chair.strengths(study["rows"])
        found = RESULTS["models"][model]
        assert found["strengths"] == pytest.approx(lams)
        assert list(found["gates"]) == [make_chair.VANILLA, *lams]


def test_a_strength_is_the_studys_or_scaled_by_the_square_law() -> None:
    rows = [
        {"source": "gradient", "target": 0.0025, "strength": 0.1},  # a quarter of 0.01: half of the strength
        {"source": "base on HaluEval", "target": 0.01, "strength": 0.3},
        {"source": "random 0", "target": 0.002, "strength": 7.0},
        {"source": "random 0", "target": 0.01, "strength": 0.5},
        {"source": "random 1", "target": 0.01, "strength": 9.0},
    ]
    found = make_chair.strengths(rows)
    assert found == pytest.approx({"gradient": 0.2, "base on HaluEval": 0.3, "random 0": 0.5})


@pytest.mark.parametrize("model", RESULTS["models"])
def test_every_figure_is_in_its_interval(model: str) -> None:
    found = RESULTS["models"][model]
    vanilla = found["gates"][make_chair.VANILLA]["values"]
    for gate, own in found["gates"].items():
        for name in make_chair.COLUMNS:
            low, high = own["intervals"][name]
            assert low <= own["values"][name] <= high
            if gate != make_chair.VANILLA:
                difference = own["differences"][name]
                assert difference["value"] == pytest.approx(own["values"][name] - vanilla[name])
                assert difference["low"] <= difference["value"] <= difference["high"]
