from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_models as factories

from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.probing.config import CaptureConfig, ProbeConfig
from truthgate_eval.probing.dataset import TokenizedDataset
from truthgate_eval.probing.directions import class_mean_difference, deviation_along
from truthgate_eval.probing.run import run_probing

RNG = np.random.default_rng(0)
ACTIVATIONS = RNG.normal(size=(40, 2, 3, 5)).astype(np.float32)
LABELS = RNG.integers(0, 2, 40)


def test_the_mean_difference_is_that_of_each_head() -> None:
    found = class_mean_difference(ACTIVATIONS, LABELS)
    expected = ACTIVATIONS[LABELS == 1, 1, 2].mean(0) - ACTIVATIONS[LABELS == 0, 1, 2].mean(0)
    np.testing.assert_allclose(found[1, 2], expected, atol=1e-6)


def test_the_deviation_is_along_the_direction_whatever_its_length() -> None:
    directions = RNG.normal(size=(2, 3, 5))
    directions[0, 0] = 0
    found = deviation_along(ACTIVATIONS, directions)
    unit = directions[1, 1] / np.linalg.norm(directions[1, 1])
    assert found[1, 1] == pytest.approx((ACTIVATIONS[:, 1, 1] @ unit).std(), rel=1e-5)
    np.testing.assert_allclose(found, deviation_along(ACTIVATIONS, 7 * directions), rtol=1e-5)
    assert found[0, 0] == 0


def test_scores_probed_before_the_projection_can_shift_and_others_cannot(tmp_path: Path) -> None:
    tokens = RNG.integers(3, 90, (24, 6)).tolist()
    groups = np.repeat(np.arange(12), 2)
    data = TokenizedDataset(tokens, np.tile([1, 0], 12), groups, {}, "made", {"task": "made"})
    model = factories.tiny_model("llama")
    made = {
        site: run_probing(
            model, data, ProbeConfig(folds=2), name="tiny", capture_config=CaptureConfig(site=site)
        )
        for site in ("pre", "post")
    }
    file = made["pre"].save(tmp_path / "pre.npz")
    loaded = TruthScores.load(file)
    assert loaded.mean_difference is not None and loaded.mean_difference.shape == (3, 4, 8)
    config = GateConfig.parse(str(file), action="shift", top=3, alpha=2.0)
    handle = config.apply(model, "tiny")
    assert handle is not None and handle.gate.shift is not None
    handle.remove()
    assert made["post"].activation_std is None
