"""Normalization of scores within each layer: norm(S) of `docs/method.md#soft-gate`."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.errors import GateError, check_choice

Norm = Literal["minmax", "centered", "zscore", "none"]
NORMS: tuple[Norm, ...] = get_args(Norm)
# The released code divides by (max - min + 1e-6), which makes the norm of a layer of equal scores 0.
_MINMAX_EPS = 1e-6
# Scores are float32: a standard deviation below their rounding error means a layer of equal scores.
_ZSCORE_MIN_STD = 1e-7


def check_norm(norm: str) -> Norm:
    """The norm of that name.

    Raises:
        GateError: There is none.
    """
    return check_choice("norm", norm, NORMS, GateError)


def normalize(scores: NDArray[Any], norm: Norm) -> NDArray[np.float64]:
    """norm(S) of `docs/method.md#soft-gate`, within each layer.

    * `minmax`: (S - min) / (max - min + 1e-6)
    * `centered`: S - mean
    * `zscore`: (S - mean) / standard deviation
    * `none`: S

    A layer of equal scores is normalized to 0 by every norm except `none`.

    Args:
        scores: [layers, heads].
        norm: One of `NORMS`.

    Returns:
        [layers, heads].

    Raises:
        GateError: There is no such norm.

    Example:
        >>> normalize(np.array([[0.5, 0.625, 0.75]]), "centered").tolist()
        [[-0.125, 0.0, 0.125]]
    """
    norm = check_norm(norm)
    scores = np.asarray(scores, dtype=np.float64)
    if norm == "none":
        return scores
    if norm == "minmax":
        low, high = scores.min(axis=1, keepdims=True), scores.max(axis=1, keepdims=True)
        return (scores - low) / (high - low + _MINMAX_EPS)
    centered = scores - scores.mean(axis=1, keepdims=True)
    if norm == "centered":
        return centered
    std = centered.std(axis=1, keepdims=True)
    constant = std < _ZSCORE_MIN_STD
    return np.where(constant, 0.0, centered / np.where(constant, 1.0, std))
