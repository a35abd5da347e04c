"""Statistics of score arrays, against scipy, statsmodels, enumeration and simulation."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from truthgate_eval.analysis.heads import correlation
from truthgate_eval.analysis.heads.correlation import MEASURES, SCOPES, Correlation, correlate, has_variance


def pair(
    layers: int, heads: int, *, r: float = 0.0, seed: int = 0, profile: float = 0.0, profile_r: float = 1.0
) -> np.ndarray:
    """Two arrays [2, layers, heads] whose heads correlate with r, plus a normal layer profile.

    `profile` is the profile's standard deviation (the heads' is 1), `profile_r` its correlation.
    """
    rng = np.random.default_rng(seed)
    noise = rng.multivariate_normal([0, 0], [[1, r], [r, 1]], size=(layers, heads))
    shared = rng.multivariate_normal([0, 0], [[1, profile_r], [profile_r, 1]], size=layers)
    return np.moveaxis(noise + profile * shared[:, None], -1, 0)


def expected_rho(r: float, n: int) -> float:
    """Mean of Spearman's rho of n draws from a bivariate normal with correlation r."""
    return 6 / (np.pi * (n + 1)) * (np.arcsin(r) + (n - 2) * np.arcsin(r / 2))


def by_name(results: list[Correlation]) -> dict[tuple[str, str], Correlation]:
    """The results of a single pair, by (scope, measure)."""
    return {(one.scope, one.measure): one for one in results}


def test_coefficients_over_all_heads_are_scipys() -> None:
    a, b = pair(7, 5, r=0.4, profile=1)
    b = b.round(1)  # ties
    found = by_name(correlate([a, b], permutations=9))
    assert found["all heads", "pearson"].r == pytest.approx(stats.pearsonr(a.ravel(), b.ravel())[0])
    assert found["all heads", "spearman"].r == pytest.approx(stats.spearmanr(a.ravel(), b.ravel())[0])


def test_coefficients_within_layers_are_partial_correlations_given_the_layer() -> None:
    """Residuals of an ordinary regression on layer dummies, of scores or of their ranks in each layer."""
    a, b = pair(7, 5, r=0.4, profile=2)
    dummies = np.repeat(np.eye(7), 5, axis=0)
    found = by_name(correlate([a, b], permutations=9))
    ranks = partial(stats.rankdata, axis=1)
    for measure, transform in (("pearson", np.ravel), ("spearman", lambda x: ranks(x).ravel())):
        residuals = [sm.OLS(transform(x), dummies).fit().resid for x in (a, b)]
        assert found["within layers", measure].r == pytest.approx(stats.pearsonr(*residuals)[0])


def test_all_pairs_come_in_order_and_as_if_alone() -> None:
    stack = np.random.default_rng(0).normal(size=(4, 5, 6))
    together = correlate(stack, permutations=99)
    pairs = [(one.first, one.second) for one in together[::4]]
    assert pairs == list(itertools.combinations(range(4), 2))
    for start, (first, second) in zip(range(0, len(together), 4), pairs, strict=True):
        alone = correlate(stack[[first, second]], permutations=99)
        for one, other in zip(together[start : start + 4], alone, strict=True):
            assert (one.scope, one.measure) == (other.scope, other.measure)
            assert (one.r, one.low, one.high, one.p) == pytest.approx(
                (other.r, other.low, other.high, other.p)
            )


def test_permutation_p_is_scipys_and_the_exact_one() -> None:
    """Six heads over all: scipy enumerates 720 pairings. Two layers of three: 36, enumerated here."""
    a, b = pair(2, 3, r=0.6, seed=3)
    found = by_name(correlate([a, b], permutations=20_000))
    flat = a.ravel(), b.ravel()
    for measure, statistic in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        exact = stats.permutation_test(
            flat[:1], lambda x, s=statistic: abs(s(x, flat[1])[0]), permutation_type="pairings",
            n_resamples=np.inf, alternative="greater",
        )  # fmt: skip
        # Five standard errors of a share that 20,000 permutations estimate: at most 0.018.
        assert found["all heads", measure].p == pytest.approx(exact.pvalue, abs=0.018)
        transform = partial(stats.rankdata, axis=1) if measure == "spearman" else np.asarray
        x, y = (transform(z) for z in (a, b))
        x, y = (z - z.mean(axis=1, keepdims=True) for z in (x, y))
        orders = [list(order) for order in itertools.permutations(range(3))]
        products = [abs((x[0][i] @ y[0]) + (x[1][j] @ y[1])) for i in orders for j in orders]
        share = np.mean(np.array(products) >= abs((x * y).sum()) - 1e-12)
        assert found["within layers", measure].p == pytest.approx(share, abs=0.018)


def test_p_values_are_never_zero_and_hold_under_ties() -> None:
    a, _ = pair(6, 6)
    assert all(one.p == pytest.approx(1 / 100) for one in correlate([a, a], permutations=99))
    # Two values only: most permutations tie with the observed coefficient, and count as extreme.
    x = np.array([[0, 0, 1], [0, 0, 1]])
    assert all(one.p > 0.05 for one in correlate([x, x], permutations=999))


def test_holms_correction_is_over_the_pairs_of_one_statistic() -> None:
    """Three pairs: the smallest p times 3, the next times 2, the largest as it is, never falling, at most 1."""
    first, second = pair(4, 5, r=0.8)
    third = 0.4 * second + np.random.default_rng(1).normal(size=(4, 5))
    results = correlate([first, second, third], permutations=999)
    for scope, measure in itertools.product(SCOPES, MEASURES):
        chosen = [one for one in results if (one.scope, one.measure) == (scope, measure)]
        chosen.sort(key=lambda one: one.p)
        expected = np.minimum(
            np.maximum.accumulate([one.p * k for one, k in zip(chosen, (3, 2, 1), strict=True)]), 1
        )
        assert [one.p_holm for one in chosen] == pytest.approx(expected)
        assert chosen[2].p_holm < min(3 * chosen[2].p, 1), "Bonferroni's would be as large"


def test_a_shared_profile_alone_is_high_over_all_heads_and_near_zero_within_layers() -> None:
    found = by_name(correlate(pair(32, 32, profile=3), permutations=999))
    for measure in MEASURES:
        assert found["all heads", measure].r > 0.8 and found["all heads", measure].p == 0.001
        within = found["within layers", measure]
        assert abs(within.r) < 0.1 and within.low < 0 < within.high and within.p > 0.01


def test_a_planted_correlation_is_found_under_profiles_that_disagree() -> None:
    found = by_name(correlate(pair(32, 32, r=0.3, profile=3, profile_r=-0.9), permutations=999))
    for measure in MEASURES:
        within = found["within layers", measure]
        assert within.p == 0.001 and within.low > 0
        assert found["all heads", measure].r < 0
    assert found["within layers", "pearson"].r == pytest.approx(0.3, abs=3 / 31)
    assert found["within layers", "spearman"].r == pytest.approx(expected_rho(0.3, 32), abs=3 / 31)


def test_a_null_correlation_is_not_found() -> None:
    for one in correlate(pair(32, 32), permutations=999):
        assert one.p > 0.01 and one.low < 0 < one.high


def test_intervals_count_the_degrees_of_freedom_that_layer_means_cost() -> None:
    """On normal heads the jackknife's mean width is Fisher's, 1 / sqrt(n - layers - 2), and not 1 / sqrt(n - 3)."""
    layers, heads = 40, 3
    widths = []
    for seed in range(60):
        one = by_name(correlate(pair(layers, heads, seed=seed), permutations=1))["within layers", "pearson"]
        widths.append((np.arctanh(one.high) - np.arctanh(one.low)) / 2 / stats.t.ppf(0.975, layers - 1))
    n = layers * heads
    # A jackknife's standard error varies by some 20 %; the mean of 60 by some 3 %.
    assert np.mean(widths) == pytest.approx(1 / np.sqrt(n - layers - 2), rel=0.1)
    assert np.mean(widths) > 1.1 / np.sqrt(n - 3)


def test_the_same_seed_gives_the_same_p_and_another_seed_another() -> None:
    stack = pair(5, 6, r=0.2)
    assert correlate(stack, permutations=300) == correlate(stack, permutations=300)
    other = correlate(stack, permutations=300, seed=1)
    assert [one.p for one in other] != [one.p for one in correlate(stack, permutations=300)]
    assert [one.low for one in other] == [one.low for one in correlate(stack, permutations=300)]


def test_equal_arrays_correlate_with_one_and_two_layers_have_no_interval() -> None:
    a, b = pair(4, 5)
    for one in correlate([a, a], permutations=9):
        assert (one.r, one.low, one.high) == pytest.approx((1, 1, 1)) and one.r <= 1
    assert all(np.isnan(one.low) and np.isnan(one.high) for one in correlate([a[:2], b[:2]], permutations=9))


def test_a_constant_array_has_nothing_to_correlate() -> None:
    profile = np.repeat(np.float32([[0.1], [0.7], [0.3]]), 7, axis=1)
    assert has_variance(profile, "all heads") and not has_variance(profile, "within layers")
    assert not has_variance(np.full((3, 7), 0.1), "all heads")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "heads", "r", "profile"), [(32, 32, 0.5, 0.0), (30, 9, 0.0, 0.0), (6, 8, 0.9, 0.0), (30, 9, 0.3, 1.0)]
)  # fmt: skip
def test_intervals_cover(layers: int, heads: int, r: float, profile: float) -> None:
    """A 95 % interval holds the true coefficient in 95 % of 600 simulations, give or take.

    The share's standard error is sqrt(0.95 x 0.05 / 600) = 0.009. Four of them and 1.5 % for what
    the jackknife's normal theory leaves make 0.05.
    """
    # The profile is shared, with variance profile^2.
    truth = {
        ("all heads", "pearson"): (r + profile**2) / (1 + profile**2),
        ("within layers", "pearson"): r,
        ("within layers", "spearman"): expected_rho(r, heads),
    }
    if profile == 0:
        truth["all heads", "spearman"] = expected_rho(r, layers * heads)
    covered = dict.fromkeys(truth, 0)
    for seed in range(600):
        found = by_name(correlate(pair(layers, heads, r=r, profile=profile, seed=seed), permutations=1))
        for key, value in truth.items():
            covered[key] += found[key].low <= value <= found[key].high
    for key, count in covered.items():
        assert abs(count / 600 - 0.95) < 0.05, (key, count / 600)


@pytest.mark.slow
def test_intervals_cover_where_layers_differ_in_variance_and_fishers_do_not() -> None:
    covered, fishers, n = 0, 0, 30 * 9
    for seed in range(600):
        scale = np.random.default_rng(seed + 10_000).gamma(2, 0.5, size=(30, 1))
        stack = pair(30, 9, r=0.4, seed=seed) * scale
        one = by_name(correlate(stack, permutations=1))["within layers", "pearson"]
        covered += one.low <= 0.4 <= one.high
        fishers += abs(np.arctanh(one.r) - np.arctanh(0.4)) < 1.96 / np.sqrt(n - 30 - 2)
    assert covered / 600 > 0.90 and fishers / 600 < 0.85


@pytest.mark.slow
def test_the_within_layer_test_errs_as_often_as_it_says() -> None:
    """Of 600 null pairs with a strong shared profile and unequal scales, 5 % have p <= 0.05."""
    errors = dict.fromkeys(MEASURES, 0)
    for seed in range(600):
        scale = np.random.default_rng(seed + 10_000).gamma(2, 0.5, size=(8, 1))
        stack = pair(8, 6, seed=seed) * scale + pair(8, 1, seed=seed, r=0.99) * 3
        found = by_name(correlate(stack, permutations=199, seed=seed))
        for measure in MEASURES:
            errors[measure] += found["within layers", measure].p <= 0.05
    for measure, count in errors.items():
        assert abs(count / 600 - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 600), (measure, count / 600)


def test_permutations_in_blocks_are_as_many_as_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(correlation, "_BLOCK", 7)
    a, _ = pair(4, 5)
    assert all(one.p == pytest.approx(1 / 21) for one in correlate([a, a], permutations=20))
