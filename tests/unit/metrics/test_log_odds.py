"""Metrics of log-odds against scikit-learn and scipy, held-out thresholds and offsets, and a planted bias."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from truthgate_eval.metrics import log_odds
from truthgate_eval.metrics.log_odds import LogOddsAnswer


def answers(number: int = 240, *, bias: float = 0.0, seed: int = 0, digits: int = 1) -> list[LogOddsAnswer]:
    """Four questions about each image; rounded, so that some log-odds are equal."""
    rng = np.random.default_rng(seed)
    golds = rng.random(number) < 0.4
    values = np.round(rng.normal(np.where(golds, 1.0, -0.5), 1.5), digits) + bias
    return [
        {"log_odds": float(value), "gold": "yes" if gold else "no", "cluster": f"{i // 4}.jpg"}
        for i, (value, gold) in enumerate(zip(values, golds, strict=True))
    ]


def arrays(own: list[LogOddsAnswer]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([a["log_odds"] for a in own]), np.array([a["gold"] == "yes" for a in own])


def test_auroc_and_log_loss_equal_scikit_learns() -> None:
    own = answers()
    values, is_yes = arrays(own)
    assert len(np.unique(values)) < len(values)  # ties
    assert log_odds.auroc(own) == pytest.approx(roc_auc_score(is_yes, values), abs=1e-12)
    assert log_odds.log_loss(own) == pytest.approx(sklearn_log_loss(is_yes, expit(values)), abs=1e-12)
    assert log_odds.acc(own) == np.mean((values >= 0) == is_yes)
    assert log_odds.yes_ratio(own) == np.mean(values >= 0)


def test_the_weighted_auroc_is_that_of_documents_that_are_repeated() -> None:
    values, is_yes = arrays(answers(60))
    weights = np.random.default_rng(1).integers(0, 4, (5, 60))
    expected = [roc_auc_score(np.repeat(is_yes, own), np.repeat(values, own)) for own in weights]
    assert log_odds.weighted_auroc(values, is_yes, weights.astype(float)) == pytest.approx(
        expected, abs=1e-12
    )


def test_a_constant_changes_accuracy_and_log_loss_but_not_what_needs_no_threshold() -> None:
    plain, biased = log_odds.measure(answers()), log_odds.measure(answers(bias=2.0))
    assert biased["acc"] < plain["acc"] - 0.1 and biased["yes_ratio"] > plain["yes_ratio"] + 0.2
    assert biased["log_loss"] > plain["log_loss"] + 0.3
    for name in ("auroc", "acc_at_threshold", "log_loss_offset"):
        assert biased[name] == pytest.approx(plain[name], abs=1e-9), name


@pytest.mark.parametrize("bias", [-3.0, -0.7, 0.7, 3.0])
def test_a_constant_moves_a_threshold_that_is_one_of_many_equally_good_ones(bias: float) -> None:
    for seed in range(30):  # six digits: no log-odds are half-way between two others, where rounding decides
        plain, biased = (answers(24, seed=seed, bias=b, digits=6) for b in (0.0, bias))
        assert log_odds.acc_at_threshold(biased) == log_odds.acc_at_threshold(plain), seed


def test_the_threshold_is_the_best_one_of_the_other_folds() -> None:
    own = answers(bias=-1.3)
    values, is_yes = arrays(own)
    folds = log_odds.fold_of_each([a["cluster"] for a in own])
    right = log_odds.document_values(own)["acc_at_threshold"]
    middles = [-np.inf, *((np.unique(values)[1:] + np.unique(values)[:-1]) / 2), np.inf]
    for fold in np.unique(folds):
        others = folds != fold
        found = np.array([np.mean((values[others] >= t) == is_yes[others]) for t in middles])
        best = [t for t, share in zip(middles, found, strict=True) if share == found.max()]
        possible = [((values[~others] >= t) == is_yes[~others]).mean() for t in best]
        assert min(possible) <= right[~others].mean() <= max(possible)
        # A threshold fitted on all documents would do better than this at most, never the other way round.
        assert found.max() >= np.mean((values[others] >= 0) == is_yes[others])


def test_the_offset_is_scipys_optimum_of_the_other_folds() -> None:
    own = answers(bias=3.0)
    values, is_yes = arrays(own)
    folds = log_odds.fold_of_each([a["cluster"] for a in own])
    losses = log_odds.document_values(own)["log_loss_offset"]

    def loss(offset: float, rows: np.ndarray) -> np.ndarray:
        return np.logaddexp(0, np.where(is_yes, -1, 1) * (values + offset))[rows]

    for fold in np.unique(folds):
        others = folds != fold
        best = minimize_scalar(lambda b, rows=others: loss(b, rows).mean(), bounds=(-20, 20), method="bounded",
                               options={"xatol": 1e-10}).x  # fmt: skip
        assert losses[~others] == pytest.approx(loss(best, ~others), abs=1e-6)


def test_extreme_log_odds_have_a_finite_offset() -> None:
    own = answers(40)
    for n, answer in enumerate(own):
        answer["log_odds"] = 400.0 + (300.0 if n % 3 else -300.0)
    assert np.isfinite(log_odds.log_loss_offset(own))


def test_noise_gains_nothing_from_a_threshold() -> None:
    """The best threshold on the same documents is above one half even for noise; a held-out one is not."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(200):
        own: list[LogOddsAnswer] = [
            {"log_odds": float(rng.normal()), "gold": "yes" if n % 2 else "no", "cluster": str(n)}
            for n in range(40)
        ]
        shares.append(log_odds.acc_at_threshold(own))
    assert np.mean(shares) < 0.5 + 2 * np.std(shares) / np.sqrt(len(shares))


def test_a_cluster_is_in_one_fold_and_order_changes_nothing() -> None:
    own = answers()
    names = [a["cluster"] for a in own]
    folds = log_odds.fold_of_each(names)
    by_cluster: dict[str, set[int]] = {}
    for name, fold in zip(names, folds, strict=True):
        by_cluster.setdefault(name, set()).add(int(fold))
    assert all(len(found) == 1 for found in by_cluster.values())
    sizes = np.bincount(folds)
    assert len(sizes) == log_odds.FOLDS and sizes.max() - sizes.min() <= 4
    shuffled = [own[i] for i in np.random.default_rng(0).permutation(len(own))]
    assert log_odds.measure(shuffled) == pytest.approx(log_odds.measure(own), abs=1e-12)


def test_what_is_not_defined_is_nan() -> None:
    one_class = [{**answer, "gold": "yes"} for answer in answers(20)]
    found = log_odds.measure(one_class)
    assert np.isnan(found["auroc"]) and np.isnan(found["log_loss_offset"]) and np.isfinite(found["log_loss"])
    one_image = [{**answer, "cluster": "a.jpg"} for answer in answers(20)]
    found = log_odds.measure(one_image)
    assert np.isnan(found["acc_at_threshold"]) and np.isnan(found["log_loss_offset"])
    assert np.isfinite(found["auroc"])


def test_the_probability_of_a_word_is_the_sum_over_its_spellings() -> None:
    yes, no = np.log([0.2, 0.1, 0.05]), np.log([0.3, 0.001])
    assert log_odds.log_odds_of_spellings(list(yes), list(no)) == pytest.approx(np.log(0.35 / 0.301))
