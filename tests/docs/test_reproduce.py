"""docs/reproduce.md is what its script makes of the models' configurations."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "studies"))

import make_reproduce  # noqa: E402


@pytest.mark.slow
def test_the_page_is_what_its_script_makes() -> None:
    assert make_reproduce.PAGE.read_text(encoding="utf-8") == make_reproduce.page()


def test_a_model_without_a_published_lam_is_compared_at_one_divergence_with_shuffled_scores() -> None:
    model = next(own for own in make_reproduce._models() if own.file == "qwen3-vl")
    gates, _ = make_reproduce.pope_gates(model)
    strengths = {gate.split(",", 1)[1] for name, gate in gates.items() if name != "vanilla"}
    assert strengths == {"lam=kl:0.02,norm=centered"}
    assert gates["shuffled"].startswith("scores=shuffled:qwen3.npz:1,")
