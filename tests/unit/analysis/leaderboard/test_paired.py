"""Paired statistics against scipy, statsmodels, metrics of single answers, and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from truthgate_eval.analysis.leaderboard.paired import (
    cluster_bootstrap,
    exact_mcnemar,
)
from truthgate_eval.metrics import yes_no


def simulate(
    rng: np.random.Generator, clusters: int, size: int, rates: tuple[float, float], concentration: float
) -> np.ndarray:
    """[2, clusters, 1, 5] counts of two runs whose accuracy varies from cluster to cluster (beta-binomial)."""
    counts = np.zeros((2, clusters, 1, 5))
    counts[..., 0] = size
    for run, rate in enumerate(rates):
        own = rng.beta(rate * concentration, (1 - rate) * concentration, clusters)
        counts[run, :, 0, 1] = rng.binomial(size, own)
    return counts


def test_mcnemar_is_scipys_binomial_test_on_the_documents_that_differ() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.random(60) < 0.7, rng.random(60) < 0.5
        found = exact_mcnemar(a, b)
        assert found.only_first == sum(a & ~b) and found.only_second == sum(~a & b)
        expected = stats.binomtest(found.only_first, found.only_first + found.only_second).pvalue
        assert found.p == pytest.approx(expected)


def test_mcnemar_is_the_exact_test_of_statsmodels() -> None:
    for both, only_first, only_second in [
        (5, 0, 0),
        (0, 1, 0),
        (7, 3, 3),
        (40, 12, 5),
        (100, 60, 31),
        (0, 0, 90),
    ]:
        first = np.array([True] * both + [True] * only_first + [False] * only_second)
        second = np.array([True] * both + [False] * only_first + [True] * only_second)
        expected = mcnemar([[both, only_first], [only_second, 0]], exact=True).pvalue
        assert exact_mcnemar(first, second).p == pytest.approx(min(1.0, expected), rel=1e-12)


def test_no_document_that_differs_gives_p_1() -> None:
    row = np.array([True, False, True])
    assert exact_mcnemar(row, row).p == 1.0


@pytest.mark.parametrize(("rates", "finds"), [((0.6, 0.6), False), ((0.6, 0.75), True)])
def test_a_planted_difference_is_found_and_none_is_not(rates: tuple[float, float], finds: bool) -> None:
    rng = np.random.default_rng(1)
    found = [
        exact_mcnemar(rng.random(400) < rates[0], rng.random(400) < rates[1]).p < 0.05 for _ in range(200)
    ]
    # An exact test is wrong in at most 5 % of null cases; 0.09 is three standard errors above.
    assert np.mean(found) > 0.95 if finds else np.mean(found) < 0.09


def test_metrics_of_counts_are_those_of_single_answers() -> None:
    rng = np.random.default_rng(2)
    for answers in (["yes", "no", None], ["no"], ["yes"]):
        pairs = [
            (str(rng.choice(["yes", "no"])), rng.choice(np.array(answers, dtype=object))) for _ in range(50)
        ]
        counts = np.array(
            [
                len(pairs),
                sum(gold == said for gold, said in pairs),
                sum(gold == said == "yes" for gold, said in pairs),
                sum(said == "yes" for _, said in pairs),
                sum(gold == "yes" for gold, _ in pairs),
            ],
            dtype=float,
        )
        expected = [m(pairs) for m in (yes_no.accuracy, yes_no.f1, yes_no.precision, yes_no.recall)]
        assert yes_no.metrics_from_counts(counts) == pytest.approx(expected)


def test_the_interval_is_scipys_percentile_bootstrap_over_clusters() -> None:
    counts = simulate(np.random.default_rng(3), 80, 6, (0.6, 0.7), concentration=4)
    [found] = cluster_bootstrap(counts, resamples=20_000, seed=0)
    difference = (counts[1] - counts[0])[:, 0, 1] / 6
    expected = stats.bootstrap(
        (difference,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(9)
    ).confidence_interval
    # Both ends are random; two draws of 20,000 differ by about a hundredth of the width.
    assert found[0] == pytest.approx([expected.low, expected.high], abs=0.005)


def test_the_same_seed_gives_the_same_interval_in_any_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = simulate(np.random.default_rng(4), 30, 3, (0.5, 0.6), concentration=4)
    whole = cluster_bootstrap(counts, resamples=500, seed=7)
    monkeypatch.setattr("truthgate_eval.analysis.leaderboard.paired._CHUNK", 30 * 7)
    assert np.array_equal(cluster_bootstrap(counts, resamples=500, seed=7), whole)
    assert not np.array_equal(cluster_bootstrap(counts, resamples=500, seed=8), whole)


def test_equal_runs_differ_by_exactly_nothing() -> None:
    counts = simulate(np.random.default_rng(5), 30, 3, (0.5, 0.5), concentration=4)
    counts[1] = counts[0]
    assert np.array_equal(cluster_bootstrap(counts, resamples=200), np.zeros((1, 4, 2)))


def test_the_mean_over_tasks_has_equal_weights() -> None:
    counts = simulate(np.random.default_rng(6), 40, 3, (0.5, 0.6), concentration=4)
    twice = np.concatenate([counts, counts], axis=2)
    assert cluster_bootstrap(twice, seed=1) == pytest.approx(cluster_bootstrap(counts, seed=1))


def test_intervals_cover_the_true_difference_and_those_that_ignore_clusters_do_not() -> None:
    rng = np.random.default_rng(7)
    clusters, size, rates, trials = 100, 12, (0.6, 0.7), 600
    covered, naive = 0, 0
    for trial in range(trials):
        # Answers about one image are alike: the two runs' rates vary strongly between images.
        counts = simulate(rng, clusters, size, rates, concentration=2)
        [[low, high]] = cluster_bootstrap(counts, resamples=1000, seed=trial)[:, 0]
        covered += low <= rates[1] - rates[0] <= high
        shares = counts[:, :, 0, 1].sum(axis=1) / (clusters * size)
        error = np.sqrt(sum(p * (1 - p) for p in shares) / (clusters * size))
        naive += abs(shares[1] - shares[0] - (rates[1] - rates[0])) <= 1.96 * error
    # The binomial standard error of 600 trials at 95 % is 0.9 %.
    assert 0.92 <= covered / trials <= 0.98
    assert naive / trials < 0.85
