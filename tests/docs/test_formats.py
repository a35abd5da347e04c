"""docs/results.md: the table of the two formats is that of docs/formats.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
sys.path.insert(0, str(DOCS.parent / "studies"))  # scripts, which import each other by name

import make_formats  # noqa: E402


def test_the_page_has_the_table_of_its_data() -> None:
    results = json.loads((DOCS / "formats.json").read_text(encoding="utf-8"))
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    written = page.split(make_formats.BEGIN)[1].split(make_formats.END)[0]
    assert written == make_formats.table(results)
    rows = [(row["site"], row["format"], row["documents"]) for row in results["rows"]]
    sites, formats = make_formats.SITES, make_formats.FORMATS
    assert rows == [(site, name, make_formats.POLLS) for site in sites for name in formats]
