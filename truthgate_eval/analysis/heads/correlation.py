"""Correlations between the truth scores of models, head by head, with intervals and p-values.

Every statistic is Pearson's r of transformed scores (ranked for Spearman's rho, within layers in each layer;
each layer's mean removed within layers), so the same code computes all four of them for all pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata, t

from truthgate_eval.analysis.multiple_testing import correct_p_values

Array = NDArray[np.float64]

Measure = Literal["pearson", "spearman"]
Scope = Literal["all heads", "within layers"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
SCOPES: tuple[Scope, ...] = get_args(Scope)
# Permutations in one block: 512 of 1,024 heads take 4 MB.
_BLOCK = 512
# Sums of the same terms in another order differ in their last digits. They count as equal up to this.
_EQUAL = 1e-10
# Fisher's z of a perfect correlation is infinite, that of this one is not.
_ALMOST_ONE = 1 - 1e-12


@dataclass(frozen=True)
class Correlation:
    """One correlation of two score arrays.

    Attributes:
        first: Index of the first array.
        second: Index of the second one, larger than `first`.
        measure: Pearson's r or Spearman's rho.
        scope: Over all heads, or within layers.
        r: The coefficient, in [-1, 1].
        low: Lower end of its confidence interval; NaN with fewer than three layers.
        high: Upper end.
        p: Two-sided permutation p-value; at least 1 / (permutations + 1).
        p_holm: `p` after Holm's correction over all pairs of this measure and scope.
    """

    first: int
    second: int
    measure: Measure
    scope: Scope
    r: float
    low: float
    high: float
    p: float
    p_holm: float


def correlate(
    scores: ArrayLike,
    *,
    permutations: int = 9999,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Correlation]:
    """Correlate every pair of score arrays, by both measures in both scopes.

    *Over all heads*, a profile over layers that two models share counts as agreement. *Within layers* it
    does not: for Pearson each layer's mean is removed first, which makes the coefficient a partial
    correlation given the layer; for Spearman the heads of each layer are ranked by themselves, so that a
    layer counts the same however much its scores differ.

    **p-values.** The heads of one array are permuted, over all heads or within each layer. These
    transformations leave the scope's null hypothesis true, and each layer's mean at zero where it was
    removed. The within-layer test is therefore exact, whatever the profiles and variances of the layers. The
    test over all heads has random pairing of heads as its null hypothesis; a shared profile alone rejects it.
    Monte Carlo, two-sided, p = (1 + as extreme) / (1 + permutations).

    **Intervals.** Over all heads, the heads of a layer share its profile and are no independent sample, so
    Fisher's 1/sqrt(n - 3) would be too narrow. The unit is therefore the layer: the jackknife over layers of
    Fisher's z, with t quantiles at (layers - 1) degrees of freedom. Ranks and means are recomputed from the
    remaining layers, so the standard error includes the degrees of freedom that layer means cost, and layers
    may differ in variance (in simulations with such layers Fisher's 95 % intervals cover 75 % and these 93 %;
    with equal variances both cover 95 %). Neighbouring layers are treated as independent: where a profile is
    smooth over depth, the interval over all heads is still too narrow.

    Args:
        scores: [arrays, layers, heads], at least two arrays, none constant (see `has_variance`).
        permutations: How many permutations to draw.
        confidence: Coverage of the intervals, between 0 and 1.
        seed: Chooses the permutations; nothing else is random.

    Returns:
        One result for each pair in order, each scope, and each measure.

    Example:
        >>> scores = [[[0.1, 0.4], [0.5, 0.9]], [[0.2, 0.3], [0.6, 0.8]]]
        >>> found = correlate(scores, permutations=9)
        >>> [(one.scope, one.measure, round(one.r, 2)) for one in found][0]
        ('all heads', 'pearson', 0.94)
    """
    stack = np.asarray(scores, dtype=np.float64)
    values: dict[tuple[Scope, Measure], Array] = {
        (scope, measure): standardize_rows(stack, measure, scope) for scope in SCOPES for measure in MEASURES
    }
    p_values = _permutation_p(values, stack.shape, permutations, seed)
    pairs = list(combinations(range(len(stack)), 2))
    found: dict[tuple[int, int], list[Correlation]] = {pair: [] for pair in pairs}
    for (scope, measure), rows in values.items():
        r = rows @ rows.T
        low, high = _jackknife_interval(r, _leave_one_layer_out(stack, measure, scope), confidence)
        p = p_values[scope, measure]
        holm = correct_p_values([p[pair] for pair in pairs], "holm")
        for pair, p_holm in zip(pairs, holm, strict=True):
            ends = float(low[pair]), float(high[pair])
            coefficient = float(r[pair].clip(-1, 1))
            found[pair].append(
                Correlation(*pair, measure, scope, coefficient, *ends, float(p[pair]), float(p_holm))
            )
    return [result for pair in pairs for result in found[pair]]


def has_variance(scores: ArrayLike, scope: Scope) -> bool:
    """Whether [layers, heads] differ between heads, or between heads of a layer, so that r is defined."""
    stack = np.asarray(scores, dtype=np.float64)[None]
    return all(bool(np.isfinite(standardize_rows(stack, measure, scope)).all()) for measure in MEASURES)


def standardize_rows(stack: Array, measure: Measure, scope: Scope) -> Array:
    """Rows of unit length whose dot products are the coefficients.

    Args:
        stack: [arrays, layers, heads].
        measure: Pearson's r or Spearman's rho.
        scope: Over all heads, or within layers.

    Returns:
        [arrays, layers * heads]; NaN for an array that is constant.
    """
    values = stack
    if measure == "spearman":
        ranked_together = stack if scope == "within layers" else stack.reshape(len(stack), -1)
        values = rankdata(ranked_together, axis=-1).reshape(stack.shape)
    axis = 2 if scope == "within layers" else (1, 2)
    centred = (values - values.mean(axis=axis, keepdims=True)).reshape(len(stack), -1)
    length = np.sqrt((centred**2).sum(axis=1, keepdims=True))
    # The mean of equal numbers has a rounding error, which is not variance.
    constant = length <= 1e-9 * np.sqrt((values**2).sum(axis=(1, 2)))[:, None]
    return np.where(constant, np.nan, centred / np.where(constant, 1.0, length))


def _leave_one_layer_out(stack: Array, measure: Measure, scope: Scope) -> Array:
    """`standardize_rows` with each layer left out in turn: [arrays, layers, (layers - 1) * heads]."""
    layers = stack.shape[1]
    if layers < 3:
        return np.full((len(stack), layers, 1), np.nan)
    kept = [np.delete(stack, layer, axis=1) for layer in range(layers)]
    return np.stack([standardize_rows(rest, measure, scope) for rest in kept], axis=1)


def _jackknife_interval(r: Array, left_out: Array, confidence: float) -> tuple[Array, Array]:
    """Lower and upper ends [arrays, arrays], from the rows with one layer left out."""
    layers = left_out.shape[1]
    z = _fisher_z(r)
    pseudo = _fisher_z(np.einsum("alm,blm->abl", left_out, left_out))
    deviations = pseudo - pseudo.mean(axis=2, keepdims=True)
    stderr = np.sqrt((layers - 1) / layers * (deviations**2).sum(axis=2))
    reach = t.ppf((1 + confidence) / 2, max(layers - 1, 1)) * stderr
    return np.tanh(z - reach), np.tanh(z + reach)


def _fisher_z(r: Array) -> Array:
    return np.arctanh(np.clip(r, -_ALMOST_ONE, _ALMOST_ONE))


def _permutation_p(
    values: dict[tuple[Scope, Measure], Array], shape: tuple[int, ...], permutations: int, seed: int
) -> dict[tuple[Scope, Measure], Array]:
    """Two-sided p-values [arrays, arrays]; all pairs and measures of a scope share the permutations."""
    extreme = {key: np.zeros((len(rows), len(rows))) for key, rows in values.items()}
    observed = {key: np.abs(rows @ rows.T) - _EQUAL for key, rows in values.items()}
    rng = np.random.default_rng(seed)
    for scope in SCOPES:
        for heads in _permuted_heads(rng, shape[1:], scope, permutations):
            for measure in MEASURES:
                rows, key = values[scope, measure], (scope, measure)
                for second in range(1, len(rows)):
                    permuted = np.abs(rows[second][heads] @ rows[:second].T)
                    extreme[key][:second, second] += (permuted >= observed[key][:second, second]).sum(axis=0)
    return {key: (1 + count) / (1 + permutations) for key, count in extreme.items()}


def _permuted_heads(
    rng: np.random.Generator, shape: tuple[int, ...], scope: Scope, permutations: int
) -> Iterator[NDArray[np.int64]]:
    """Blocks [at most _BLOCK, layers * heads] of permuted head indices."""
    layers, heads = shape
    order = np.arange(layers * heads)
    for start in range(0, permutations, _BLOCK):
        count = min(_BLOCK, permutations - start)
        if scope == "within layers":
            block = np.broadcast_to(order.reshape(layers, heads), (count, layers, heads))
        else:
            block = np.broadcast_to(order, (count, layers * heads))
        yield rng.permuted(block, axis=-1).reshape(count, -1)
