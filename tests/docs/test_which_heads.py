"""docs/which-heads.md: its tables are those of docs/study.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
sys.path.insert(0, str(DOCS.parent / "studies"))  # scripts, which import each other by name

import make_study  # noqa: E402


def test_the_page_has_the_tables_of_its_data() -> None:
    results = json.loads((DOCS / "study.json").read_text(encoding="utf-8"))
    page = (DOCS / "which-heads.md").read_text(encoding="utf-8")
    assert page.split(make_study.BEGIN)[1].split(make_study.END)[0] == make_study.tables(results)
    assert set(results["studies"]) == set(make_study.STUDIES)
    for study in results["studies"].values():
        for found in study["models"].values():
            assert {row["source"] for row in found["rows"] if not row["is_control"]}
