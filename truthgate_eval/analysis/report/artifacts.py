"""Score artifacts and families of them for a report: rounded numbers with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.analysis.heads.control_report import control_verdicts
from truthgate_eval.analysis.heads.correlation import (
    MEASURES,
    SCOPES,
    Correlation,
    Measure,
    has_variance,
)
from truthgate_eval.analysis.heads.family import (
    FamilyMatrix,
    FamilyMember,
    correlate_family,
    different_settings,
)
from truthgate_eval.credentials import mask_credentials
from truthgate_eval.errors import DataError, ScoresError
from truthgate_eval.gating.sweep import Candidate

# Half a 95 % interval of a normal estimate, in standard errors.
_HALF_WIDTH = 1.96
_QUANTITIES = {
    "scores": "score",
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "train_accuracy": "train accuracy",
    "stderr": "stderr",
}
_SHARES = ("accuracy", "auroc")  # scores between 0 and 1; others, such as a gain, can be negative


def collect_artifact(member: FamilyMember) -> dict[str, Any]:
    """An artifact's arrays [layers][heads], which include its controls, its sweep and its provenance.

    Raises:
        ScoresError: The metadata holds a sweep that cannot be read.
    """
    scores, meta = member.scores, member.scores.metadata
    arrays = {
        label: rounded(getattr(scores, name))
        for name, label in _QUANTITIES.items()
        if getattr(scores, name) is not None
    }
    for name, control in scores.controls.items():
        arrays[f"control {name}"] = rounded(np.broadcast_to(control, scores.shape))
    return {
        "label": member.label,
        "family": member.family,
        "source": member.source,
        "model": meta.get("model"),
        "task": meta.get("task") or meta.get("imported_from"),
        "site": meta.get("site"),
        "layers": scores.shape[0],
        "heads": scores.shape[1],
        "mean": rounded(scores.scores.mean(keepdims=True))[0][0],
        "score": meta.get("score"),
        "warnings": [verdict.sentence for verdict in control_verdicts(scores) if verdict.explains],
        "sha256": scores.fingerprint,
        "arrays": arrays,
        "interval": _interval(member),
        "sweep": _sweep(member),
        "metadata": mask_credentials(shorten(meta)),
    }


def _interval(member: FamilyMember) -> dict[str, Any] | None:
    """Lower and upper ends [layers][heads] of the scores' 95 % intervals; None without standard errors."""
    scores, stderr = member.scores.scores, member.scores.stderr
    if stderr is None:
        return None
    low, high = scores - _HALF_WIDTH * stderr, scores + _HALF_WIDTH * stderr
    if member.scores.metadata.get("score", "accuracy") in _SHARES:
        low, high = low.clip(0, 1), high.clip(0, 1)
    return {"low": rounded(low), "high": rounded(high)}


def _sweep(member: FamilyMember) -> dict[str, Any] | None:
    """The candidates of the sweep that chose the artifact's recommended gate; None if none are recorded."""
    chosen = member.scores.metadata.get("recommended")
    if not isinstance(chosen, dict) or not chosen.get("points"):
        return None
    points = chosen["points"] if isinstance(chosen["points"], list) else [chosen["points"]]
    try:
        candidates = [Candidate.from_record(point, "a point") for point in points]
    except DataError as error:
        raise ScoresError(f"{member.source}: the sweep in its metadata cannot be read ({error})") from error
    setting = (chosen.get("lam"), chosen.get("norm"), chosen.get("site"))
    # A candidate without a finite value has no position in the chart.
    if not all(math.isfinite(x) for one in candidates for x in (one.value, one.lam, one.stderr or 0.0)):
        raise ScoresError(f"{member.source}: a candidate of the sweep in its metadata has no value")
    return {
        "points": [
            {
                **{name: getattr(one, name) for name in ("lam", "norm", "site", "value", "stderr")},
                "documents": one.documents,
                **({} if one.target is None else {"target": one.target}),
                "chosen": (one.lam, one.norm, one.site) == setting,
            }
            for one in candidates
        ],
        **{name: chosen.get(name) for name in ("metric", "task", "subset")},
    }


def collect_families(
    members: Sequence[FamilyMember], *, permutations: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """The correlations of artifacts with equal numbers of layers and heads.

    Args:
        members: The artifacts.
        permutations: Of heads, for the p-values.

    Returns:
        One family for each geometry with two artifacts or more, and a sentence for each artifact in none.
    """
    notes, families = [], []
    shapes = list(dict.fromkeys(member.scores.shape for member in members))
    if len(shapes) > 1:
        notes.append(
            "Heads of different architectures cannot be paired: artifacts of different geometries are not in "
            "one matrix."
        )
    for shape in shapes:
        same_shape = [member for member in members if member.scores.shape == shape]
        constant = [
            member
            for member in same_shape
            if not all(has_variance(member.scores.scores, scope) for scope in SCOPES)
        ]
        for member in constant:
            notes.append(f"The scores of {member.label} do not differ between heads: they are in no matrix.")
        kept = [member for member in same_shape if member not in constant]
        if len(kept) > 1:
            families.append(_family(correlate_family(kept, permutations=permutations)))
            warning = different_settings(kept)
            notes += [f"Note: {warning}."] if warning else []
        elif len(members) > 1:
            geometry = f"{shape[0]} layers x {shape[1]} heads"
            notes += [f"There is no other artifact of {geometry} to pair {one.label} with." for one in kept]
    return families, notes


def _family(family: FamilyMatrix) -> dict[str, Any]:
    shape = family.members[0].scores.shape
    return {
        "geometry": f"{shape[0]} layers x {shape[1]} heads",
        "members": [{"label": member.label, "family": member.family} for member in family.members],
        "settings": family.settings,
        "matrices": {measure: _matrix(family, measure) for measure in MEASURES},
    }


def _matrix(family: FamilyMatrix, measure: Measure) -> list[list[dict[str, Any] | None]]:
    """Rows of correlations: over all heads above the diagonal, within layers below it, None on it."""
    count = len(family.members)
    return [
        [
            None if row == column else _cell(family.pair(measure, SCOPES[int(row > column)], row, column))
            for column in range(count)
        ]
        for row in range(count)
    ]


def _cell(one: Correlation) -> dict[str, Any]:
    numbers = {name: getattr(one, name) for name in ("r", "low", "high", "p", "p_holm")}
    return {
        "scope": one.scope,
        **{k: float(f"{v:.6g}") if math.isfinite(v) else None for k, v in numbers.items()},
    }


def rounded(array: NDArray[Any]) -> list[list[float | None]]:
    """A matrix with four digits; None for NaN and infinity.

    Example:
        >>> rounded(np.array([[0.123456, 0.000123456, np.nan]]))
        [[0.1235, 0.0001235, None]]
    """
    rows = np.asarray(array, dtype=np.float64)
    return [[float(f"{x:.4g}") if math.isfinite(x) else None for x in row] for row in rows.tolist()]


def shorten(value: Any, *, most: int = 12) -> Any:
    """Metadata for display: a list of more than `most` values becomes its ends and its length.

    Example:
        >>> shorten({"rows": list(range(292))})
        {'rows': '0 ... 291 (292 values)'}
    """
    if isinstance(value, dict):
        return {key: shorten(one, most=most) for key, one in value.items()}
    if not isinstance(value, list):
        return value
    if len(value) > most:
        return f"{value[0]} ... {value[-1]} ({len(value)} values)"
    return [shorten(one, most=most) for one in value]
