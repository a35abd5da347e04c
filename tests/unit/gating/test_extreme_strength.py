"""A strength far beyond every published one is applied, after a warning."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from helpers import tiny_models as factories

from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.scores import TruthScores

SCORES = TruthScores(np.random.default_rng(0).uniform(0.5, 1, (3, 4)))


@pytest.mark.parametrize(("lam", "warns"), [(1e9, True), (-1e9, True), (7.5, False)])
def test_factors_beyond_all_published_ones_are_named(
    lam: float, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    layout = find_attention_layout(factories.tiny_model("llama"))
    with caplog.at_level(logging.WARNING):
        gate = GateConfig.parse(SCORES, lam=lam, norm="centered").gate(layout, "m")
    assert ("the gate multiplies heads by up to" in caplog.text) is warns
    assert warns is (float(np.abs(gate.values).max()) > 100)


def test_a_large_lam_of_small_scores_is_no_extreme_one(caplog: pytest.LogCaptureFixture) -> None:
    """Gradients are a thousandth of an accuracy: lam is a thousand times as large."""
    layout = find_attention_layout(factories.tiny_model("llama"))
    GateConfig.parse(TruthScores(SCORES.scores / 1000), lam=2000, norm="none").gate(layout, "m")
    assert caplog.text == ""


@pytest.mark.parametrize(("alpha", "warns"), [("1e9", True), ("15", False)])
def test_a_shift_of_many_standard_deviations_is_named(
    alpha: str, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    GateConfig.parse(SCORES, action="shift", top=2, alpha=alpha)
    assert ("ITI shifts heads by 15: check alpha" in caplog.text) is warns
