"""The image that the README and the docs' home page open with is drawn from the committed results."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from studies import make_overview

ROOT = Path(__file__).resolve().parents[2]
FIGURE = ROOT / "docs" / "images" / "overview.png"


def test_the_gates_have_the_figures_of_the_committed_study() -> None:
    study = json.loads((ROOT / "docs" / "study.json").read_text(encoding="utf-8"))
    rows = make_overview.gates(study)
    assert len(rows) == len(make_overview.STUDIES) * len(make_overview.GATES)
    for row in rows:
        mean, low, high = row.log_loss
        assert low <= mean <= high
    own = {row.model: row for row in rows if row.scores == make_overview.GATES["gradient"]}
    # What the captions in README.md and docs/index.md say of these gates.
    assert all(row.log_odds > 0.5 for row in own.values())
    assert own["smollm2-135m-scenes"].conclusion.endswith("than every control of equal strength")
    assert own["smollm2-135m-easy-vqa"].conclusion.startswith("no difference")


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
        assert "equal strength" in text and "292 questions" in text
