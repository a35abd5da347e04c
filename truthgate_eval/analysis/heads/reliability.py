"""How reliable an artifact's scores are as a map of heads, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from truthgate_eval.gating.scores import TruthScores

_SCOPES = {"all": "over all heads", "within": "within layers"}


def describe_reliability(scores: TruthScores) -> str | None:
    """How reliable the scores are, and what correlation with others that allows; None if nothing tells it.

    The metadata has the reliability of two halves of the documents. Older artifacts have standard errors,
    from which follows a lower bound: errors that the heads of a layer share cancel within it.
    """
    known = scores.metadata.get("reliability") or scores.metadata.get("validation_reliability")
    bound = ""
    if not known:
        known, bound = reliability_from_errors(scores), "at least "
    text = format_reliability(known, bound)
    if text and "within" in known and not bound:
        ceiling = math.sqrt(max(known["within"], 0.0))
        text += f" (ceiling of a correlation within layers: {ceiling:.2f})"
    return text or None


def format_reliability(values: Mapping[str, Any], bound: str = "") -> str:
    """The reliabilities of `probing.reliability` in words; empty where there is none.

    Example:
        >>> format_reliability({"all": 0.957, "within": 0.8})
        '0.96 over all heads, 0.80 within layers'
    """
    named = [(values[scope], name) for scope, name in _SCOPES.items() if scope in values]
    return ", ".join(f"{bound}{value:.2f} {name}" for value, name in named)


def reliability_from_errors(scores: TruthScores) -> dict[str, float]:
    """A lower bound of the reliability: 1 - the heads' error variance / the variance of their scores.

    Args:
        scores: Without standard errors, nothing is known.

    Returns:
        `all`, over all heads, and `within`, of the scores less their layer's mean; each from 0 to 1.
    """
    if scores.stderr is None:
        return {}
    noise = float((scores.stderr.astype(np.float64) ** 2).mean())
    centred = scores.scores - scores.scores.mean(axis=1, keepdims=True)
    layers, heads = scores.shape
    variances = {
        "all": float(scores.scores.var(ddof=1)) if scores.scores.size > 1 else 0.0,
        "within": float((centred**2).sum() / (layers * (heads - 1))) if heads > 1 else 0.0,
    }
    return {scope: max(0.0, 1 - noise / value) for scope, value in variances.items() if value > 0}
