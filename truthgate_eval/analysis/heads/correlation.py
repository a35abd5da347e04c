"""How far the heads of several models rank alike: correlations of score arrays, with their uncertainty.

Every statistic is Pearson's r of transformed scores (ranked for Spearman's rho, each layer's
mean removed for the within-layer ones), so one engine serves all four of them and all pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, t
from statsmodels.stats.multitest import multipletests

Array = NDArray[np.float64]

MEASURES = ("pearson", "spearman")
SCOPES = ("all heads", "within layers")
# Permutations that are applied at once: 512 x 1,024 heads are 4 MB.
_AT_ONCE = 512
# Permuted sums of equal terms differ in their last digits; as far apart they count as equal.
_EQUAL = 1e-10
# Fisher's z of a perfect correlation is infinite; this one is not.
_ALMOST_ONE = 1 - 1e-12


@dataclass(frozen=True)
class Correlation:
    """One correlation of two score arrays.

    Attributes:
        first: Index of the one array.
        second: Index of the other, larger than `first`.
        measure: One of `MEASURES`.
        scope: One of `SCOPES`.
        r: The coefficient, in [-1, 1].
        low: Lower end of its confidence interval; NaN with fewer than three layers.
        high: Upper end.
        p: Two-sided permutation p-value; at least 1 / (permutations + 1).
        p_holm: `p` after Holm's correction over all pairs of this measure and scope.
    """

    first: int
    second: int
    measure: str
    scope: str
    r: float
    low: float
    high: float
    p: float
    p_holm: float


def correlate(
    scores: Any,
    *,
    permutations: int = 9999,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Correlation]:
    """Correlate every pair of score arrays, by both measures in both scopes.

    *Over all heads* a layer profile that two models share counts as agreement. *Within layers*
    it does not: each layer's mean (for Spearman: mean rank) is removed first, which makes the
    coefficient a partial correlation given the layer.

    **p-values.** The heads of one array are permuted, over all heads or within each layer: the
    transformations that leave the scope's null hypothesis true, and leave each layer's mean at
    zero where it was removed. So the within-layer test is exact whatever the layers' profiles
    and spreads. The one over all heads tests that heads are paired at random; a shared profile
    alone rejects it. Monte Carlo, two-sided, p = (1 + as extreme) / (1 + permutations).

    **Intervals.** Heads of a layer share its profile, so they are no independent sample over
    all heads, and Fisher's 1/sqrt(n - 3) would be too narrow. The layer is the unit instead:
    the jackknife over layers of Fisher's z, with t quantiles at (layers - 1) degrees of freedom.
    Ranks and means are taken anew from the layers that stay, so the degrees of freedom that
    layer means cost are in the standard error, and layers may differ in spread (in simulations
    Fisher's 95 % then cover 75 %, these 93 %; with equal spreads both cover 95 %). Neighbouring
    layers are taken as independent: where a profile is smooth in depth, the interval over all
    heads is still too narrow.

    Args:
        scores: [arrays, layers, heads], at least two arrays, none constant (see `varies`).
        permutations: How many permutations to draw.
        confidence: Coverage of the intervals, between 0 and 1.
        seed: Chooses the permutations; nothing else is random.

    Returns:
        For each pair in order, each scope, each measure: one result.
    """
    stack = np.asarray(scores, dtype=np.float64)
    values = {
        (scope, measure): standardize_rows(stack, measure, scope) for scope in SCOPES for measure in MEASURES
    }
    p_values = _permutation_p(values, stack.shape, permutations, seed)
    pairs = list(combinations(range(len(stack)), 2))
    found: dict[tuple[int, int], list[Correlation]] = {pair: [] for pair in pairs}
    for (scope, measure), rows in values.items():
        r = rows @ rows.T
        low, high = _jackknife_interval(r, _left_out(stack, measure, scope), confidence)
        p = p_values[scope, measure]
        holm = multipletests([p[pair] for pair in pairs], method="holm")[1]
        for pair, p_holm in zip(pairs, holm, strict=True):
            ends = float(low[pair]), float(high[pair])
            coefficient = float(r[pair].clip(-1, 1))
            found[pair].append(
                Correlation(*pair, measure, scope, coefficient, *ends, float(p[pair]), float(p_holm))
            )
    return [result for pair in pairs for result in found[pair]]


def has_variance(scores: Any, scope: str) -> bool:
    """Whether [layers, heads] differ between heads (of a layer), so that a correlation is defined."""
    stack = np.asarray(scores, dtype=np.float64)[None]
    return all(bool(np.isfinite(standardize_rows(stack, measure, scope)).all()) for measure in MEASURES)


def standardize_rows(stack: Array, measure: str, scope: str) -> Array:
    """Rows of unit length whose products are the coefficients.

    Args:
        stack: [arrays, layers, heads].
        measure: One of `MEASURES`.
        scope: One of `SCOPES`.

    Returns:
        [arrays, layers * heads]; NaN where an array has nothing to correlate.
    """
    values = stack
    if measure == "spearman":
        values = rankdata(stack.reshape(len(stack), -1), axis=1).reshape(stack.shape)
    axis = 2 if scope == "within layers" else (1, 2)
    centred = (values - values.mean(axis=axis, keepdims=True)).reshape(len(stack), -1)
    length = np.sqrt((centred**2).sum(axis=1, keepdims=True))
    # The mean of equal numbers is off by a rounding error, which is not a spread.
    constant = length <= 1e-9 * np.sqrt((values**2).sum(axis=(1, 2)))[:, None]
    return np.where(constant, np.nan, centred / np.where(constant, 1.0, length))


def _left_out(stack: Array, measure: str, scope: str) -> Array:
    """`standardize_rows` with each layer left out in turn: [arrays, layers, (layers - 1) * heads]."""
    layers = stack.shape[1]
    if layers < 3:
        return np.full((len(stack), layers, 1), np.nan)
    kept = [np.delete(stack, layer, axis=1) for layer in range(layers)]
    return np.stack([standardize_rows(rest, measure, scope) for rest in kept], axis=1)


def _jackknife_interval(r: Array, left_out: Array, confidence: float) -> tuple[Array, Array]:
    """Lower and upper ends [arrays, arrays] from the rows with one layer left out."""
    layers = left_out.shape[1]
    z = _fisher_z(r)
    parts = _fisher_z(np.einsum("alm,blm->abl", left_out, left_out))
    deviations = parts - parts.mean(axis=2, keepdims=True)
    stderr = np.sqrt((layers - 1) / layers * (deviations**2).sum(axis=2))
    reach = t.ppf((1 + confidence) / 2, max(layers - 1, 1)) * stderr
    return np.tanh(z - reach), np.tanh(z + reach)


def _fisher_z(r: Array) -> Array:
    return np.arctanh(np.clip(r, -_ALMOST_ONE, _ALMOST_ONE))


def _permutation_p(
    values: dict[tuple[str, str], Array], shape: tuple[int, ...], permutations: int, seed: int
) -> dict[tuple[str, str], Array]:
    """Two-sided p-values [arrays, arrays]; all pairs and measures of a scope share the permutations."""
    extreme = {key: np.zeros((len(rows), len(rows))) for key, rows in values.items()}
    observed = {key: np.abs(rows @ rows.T) - _EQUAL for key, rows in values.items()}
    rng = np.random.default_rng(seed)
    for scope in SCOPES:
        for heads in _permuted_heads(rng, shape[1:], scope, permutations):
            for measure in MEASURES:
                rows, key = values[scope, measure], (scope, measure)
                for second in range(1, len(rows)):
                    drawn = np.abs(rows[second][heads] @ rows[:second].T)
                    extreme[key][:second, second] += (drawn >= observed[key][:second, second]).sum(axis=0)
    return {key: (1 + count) / (1 + permutations) for key, count in extreme.items()}


def _permuted_heads(
    rng: np.random.Generator, shape: tuple[int, ...], scope: str, permutations: int
) -> Iterator[NDArray[np.int64]]:
    """Blocks [at most _AT_ONCE, layers * heads] of permuted head indices."""
    layers, heads = shape
    order = np.arange(layers * heads)
    for start in range(0, permutations, _AT_ONCE):
        count = min(_AT_ONCE, permutations - start)
        if scope == "within layers":
            block = np.broadcast_to(order.reshape(layers, heads), (count, layers, heads))
        else:
            block = np.broadcast_to(order, (count, layers * heads))
        yield rng.permuted(block, axis=-1).reshape(count, -1)
