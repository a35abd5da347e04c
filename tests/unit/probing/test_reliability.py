"""The reliability of probes' scores, from which sequences each head classifies rightly."""

from __future__ import annotations

import numpy as np
import pytest

from truthgate_eval.probing.config import ProbeConfig
from truthgate_eval.probing.cross_validation import cross_validate_heads
from truthgate_eval.probing.reliability import score_reliability, split_half_reliability
from truthgate_eval.probing.statistics import accuracy_influence


def test_it_is_that_of_the_rows_of_right_and_wrong_classifications() -> None:
    """Questions with one to three sequences; a third of them is validated by no fold."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), rng.integers(1, 4, 60))
    validated = groups % 3 > 0
    right = rng.random((2, 4, len(groups))) < np.linspace(0.4, 0.9, 8).reshape(2, 4, 1)
    influence = np.zeros(right.shape)
    influence[..., validated] = accuracy_influence(
        right[..., validated].reshape(8, -1).astype(float)
    ).reshape(2, 4, -1)
    scores = right[..., validated].mean(axis=-1)
    rows = np.moveaxis(right[..., validated].astype(float), -1, 0)
    expected = split_half_reliability(rows, np.ones(len(rows)), groups[validated])
    found = score_reliability(scores, influence, groups)
    assert found == pytest.approx(expected, abs=1e-5) and 0 < found["within"] < found["all"] < 1


@pytest.mark.parametrize("folds", [1, 5])
def test_it_foretells_how_the_same_heads_do_on_other_documents(folds: int) -> None:
    """Two samples of documents from one population; a head's signal decides its score."""
    rng = np.random.default_rng(1)
    strength = rng.uniform(0.2, 2.0, size=(3, 8))
    results = []
    for _ in range(2):
        labels, groups = np.tile([1, 0], 150), np.repeat(np.arange(150), 2)
        x = rng.normal(size=(300, 3, 8, 2))
        x[..., 0] += labels[:, None, None] * strength
        result = cross_validate_heads(x, labels, groups, ProbeConfig(solver="newton", folds=folds))
        results.append((result.scores, score_reliability(result.scores, result.influence, groups)))
    one, other = (scores - scores.mean(axis=1, keepdims=True) for scores, _ in results)
    r = float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
    foretold = np.mean([reliability["within"] for _, reliability in results])
    assert r == pytest.approx(foretold, abs=0.15)


def test_nothing_is_said_of_fewer_than_four_questions() -> None:
    influence = np.random.default_rng(0).normal(size=(1, 2, 6))
    assert score_reliability(np.array([[0.5, 0.6]]), influence, np.repeat(np.arange(3), 2)) == {}
