"""The image that the README and the docs' home page open with is drawn from the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from studies import make_overview

ROOT = Path(__file__).resolve().parents[2]
FIGURE = ROOT / "docs" / "images" / "overview.png"


def test_the_leaderboard_has_the_figures_of_the_committed_results() -> None:
    results = json.loads((ROOT / "docs" / "results.json").read_text(encoding="utf-8"))
    rows = make_overview.leaderboard(results)
    mean = results["gating"]["child"]["runs"]["vanilla"]["cells"]["mean"]
    assert [row.method for row in rows][:2] == ["vanilla", "TruthProbe_LLM"] and rows[0].difference is None
    assert rows[0].accuracy == pytest.approx(100 * mean["acc"])
    for row in rows[1:]:
        value, low, high = row.difference
        assert low <= value <= high and value == pytest.approx(row.accuracy - rows[0].accuracy)
        # What the captions in README.md and docs/index.md say of these gates.
        assert row.verdict == "no difference"


def test_the_figure_can_be_made_again_in_the_same_size(tmp_path: Path) -> None:
    make_overview.main(tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as made, Image.open(FIGURE) as committed:
        assert made.size == committed.size == (1600, 1060)


def test_readme_and_home_page_show_it_first() -> None:
    for page, link in (
        ("README.md", "docs/images/overview.png"),
        ("docs/index.md", "images/overview.png"),
    ):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert text.index(f"]({link})") == text.index("](", text.index("!["))
        assert "12,900 questions" in text and "292 questions" in text
