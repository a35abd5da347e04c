from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel
from sklearn.metrics import log_loss, roc_auc_score

from truthgate_eval.attribution.evaluation import (
    GateEvaluation,
    PairedDifference,
    conclusion,
    paired_difference,
)

RNG = np.random.default_rng(0)
GOLD = RNG.choice(["yes", "no"], 200)
SIGNS = np.where(GOLD == "yes", 1.0, -1.0)
# Log-odds of yes, leaning towards the right answer.
YES = SIGNS + RNG.normal(size=200) * 1.5


def evaluation(yes: np.ndarray) -> GateEvaluation:
    return GateEvaluation(yes * SIGNS, GOLD.tolist(), list(range(200)))


def test_figures_equal_scikit_learns() -> None:
    own = evaluation(YES).summary()
    probability = 1 / (1 + np.exp(-YES))
    assert own["log_loss"] == pytest.approx(log_loss(GOLD == "yes", probability))
    assert own["auroc"] == pytest.approx(roc_auc_score(GOLD == "yes", YES))
    assert own["accuracy"] == pytest.approx(((YES > 0) == (GOLD == "yes")).mean())


def test_a_constant_on_yes_changes_accuracy_but_neither_auroc_nor_the_loss_with_offset() -> None:
    before, after = evaluation(YES).summary(), evaluation(YES + 2).summary()
    assert after["accuracy"] < before["accuracy"] - 0.05  # type: ignore[operator]
    assert after["log_loss"] > before["log_loss"] + 0.1  # type: ignore[operator]
    assert after["auroc"] == pytest.approx(before["auroc"])
    assert after["log_loss_offset"] == pytest.approx(before["log_loss_offset"], abs=1e-6)


def test_free_text_has_no_auroc_and_no_offset() -> None:
    own = GateEvaluation(YES * SIGNS, [None] * 200, list(range(200))).summary()
    assert own["auroc"] is None and own["log_loss_offset"] is None


def test_a_paired_difference_without_clusters_is_the_paired_t_test() -> None:
    first, second = RNG.normal(size=50), RNG.normal(size=50)
    found = paired_difference(first, second, list(range(50)))
    expected = ttest_rel(first, second)
    assert found.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_documents_of_one_cluster_count_as_one() -> None:
    first = np.repeat(RNG.normal(size=10), 5)
    clustered = paired_difference(first, np.zeros(50), np.repeat(np.arange(10), 5).tolist())
    alone = paired_difference(first[::5], np.zeros(10), list(range(10)))
    assert (clustered.low, clustered.high) == pytest.approx((alone.low, alone.high))


def test_conclusions_need_both_ends_of_the_interval() -> None:
    better, unclear, worse = (
        PairedDifference(mean, mean - 0.1, mean + 0.1, 0.5) for mean in (-0.2, 0.0, 0.2)
    )
    assert conclusion(worse, None, {}) == "makes the answers worse"
    assert conclusion(unclear, None, {}) == "no difference from the vanilla model is seen"
    constant = conclusion(better, unclear, {"random 0": better})
    assert constant == "better than the vanilla model, but not once both have their best constant on yes"
    found = conclusion(better, better, {"a": better, "random 0": unclear, "yes offset up": worse})
    assert found == "better than the vanilla model, but not than random 0, yes offset up of equal strength"
    assert conclusion(better, better, {}) == "better than the vanilla model"
    assert conclusion(better, better, {"a": better}).endswith("and than every control of equal strength")
    assert conclusion(better, better, {}, corrected_p=0.06) == "no difference from the vanilla model is seen"
