"""Gates of several kinds of scores side by side, at equal strength, evaluated once on fresh documents.

Every row is one gate: scores of one kind, an action, and a strength at which the gated model's next-token
distribution is a given divergence away from the vanilla model's (`gating.strength`). Its controls have the
same strength: the same scores shuffled within layers, random gates, and a constant on the logit of yes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from truthgate_eval.analysis.multiple_testing import correct_p_values
from truthgate_eval.attribution.evaluation import (
    GateEvaluation,
    conclusion,
    describe,
    mean_odds_difference,
    paired_difference,
)
from truthgate_eval.attribution.study_gates import Direction
from truthgate_eval.attribution.study_rows import StudyRows
from truthgate_eval.errors import ProbeError
from truthgate_eval.gating.scores import TruthScores

# The action of a row that only adds a constant to the logit of yes.
_OFFSET = "offset"


@dataclass(eq=False)
class StudyResult:
    """The rows of a study of one model.

    Attributes:
        vanilla: Figures of the model without a gate.
        rows: One for each gate, with its figures and conclusion.
        reliability: For each source, what its artifact says of its reliability.
        correlations: Pearson correlation within layers of each pair of sources; None where heads are equal.
        empty: Sources whose gate is no gate at any strength.
    """

    vanilla: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    reliability: dict[str, Any] = field(default_factory=dict)
    correlations: dict[str, dict[str, float | None]] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)


def run_study(
    rows: StudyRows,
    directions: Sequence[Direction],
    targets: Sequence[float],
    *,
    progress: Callable[[int], object] = lambda _: None,
) -> StudyResult:
    """Evaluate every gate.

    Of several targets, each gate takes the one with the lowest log-loss on the choosing documents, and its
    controls take the same.

    Args:
        rows: Measures a gate, once.
        directions: The gates up to their strength, each before its controls.
        targets: Divergences from the vanilla model, in nats.
        progress: Called with 1 after each of `directions`.

    Raises:
        GateError: A gate changes too little, whatever its strength.
        ProbeError: There are several targets, and no documents to choose by.
    """
    if len(targets) > 1 and rows.documents.choosing is None:
        raise ProbeError("several divergences need documents to choose one by")
    evaluated: list[_EvaluatedGate] = []
    chosen: dict[tuple[str, str], float] = {}
    empty = [direction.source for direction in directions if direction.is_empty]
    for direction in directions:
        if direction.source in empty or direction.control_of in empty:
            used = []
        elif direction.is_random:
            used = sorted({target for (_, action), target in chosen.items() if action == direction.action})
        elif direction.control_of is not None:
            used = [chosen[direction.control_of, direction.action]]
        elif direction.strength is not None:
            used = [0.0]
        else:
            used = [_choose(rows, direction, targets)]
            chosen[direction.source, direction.action] = used[0]
        evaluated += [_evaluate(rows, direction, target) for target in used]
        progress(1)
    evaluated += [
        _EvaluatedGate(f"yes offset {direction}", _OFFSET, None, True, target, *found)
        for target in sorted(set(chosen.values()))
        for direction, sign in (("up", 1), ("down", -1))
        if (found := rows.offset(target, sign)) is not None
    ]
    test = rows.documents.test
    return StudyResult(
        {
            **rows.vanilla("test").summary(),
            "documents": len(test.documents),
            "clusters": len(set(map(str, test.clusters))),
        },
        _describe(evaluated, rows),
        empty=[
            direction.source
            for direction in directions
            if direction.is_empty and not direction.is_control and direction.strength is None
        ],
    )


@dataclass(frozen=True, eq=False)
class _EvaluatedGate:
    """A gate with its answers."""

    source: str
    action: str
    control_of: str | None
    is_control: bool
    target: float
    strength: float
    divergence: float
    scoring: GateEvaluation
    test: GateEvaluation


def _choose(rows: StudyRows, direction: Direction, targets: Sequence[float]) -> float:
    """The target whose gate has the lowest log-loss on the choosing documents."""
    if len(targets) == 1:
        return targets[0]

    def loss(target: float) -> float:
        strength, _ = rows.strength(direction, target)
        return float(rows.gated(direction, strength, "choosing").losses().mean())

    return min(targets, key=loss)


def _evaluate(rows: StudyRows, direction: Direction, target: float) -> _EvaluatedGate:
    strength, divergence = rows.strength(direction, target)
    return _EvaluatedGate(
        direction.source,
        direction.action,
        direction.control_of,
        direction.is_control,
        target,
        strength,
        divergence,
        rows.gated(direction, strength, "scoring"),
        rows.gated(direction, strength, "test"),
    )


def _describe(evaluated: Sequence[_EvaluatedGate], rows: StudyRows) -> list[dict[str, Any]]:
    """The rows' figures and conclusions; p-values are Holm's over the gates that are no controls."""
    vanilla, before = rows.vanilla("test"), rows.vanilla("scoring")
    described = []
    for one in evaluated:
        named = {
            "source": one.source, "action": one.action, "control_of": one.control_of,
            "is_control": one.is_control, "target": one.target, "strength": one.strength,
            "divergence": one.divergence,
        }  # fmt: skip
        row = {**named, **describe(one.test, vanilla)}
        row["log_odds"] = {
            "scoring": mean_odds_difference(one.scoring, before, rows.documents.scoring.weights).as_dict(),
            "test": mean_odds_difference(one.test, vanilla, rows.documents.test.weights).as_dict(),
        }
        described.append(row)
    own = [row for row in described if not row["is_control"]]
    corrected = correct_p_values([row["difference"]["log_loss"]["p"] for row in own])
    for row, p in zip(own, corrected, strict=True):
        row["p_holm"] = p
    for one, row in zip(evaluated, described, strict=True):
        row["conclusion"] = _conclude(one, evaluated, vanilla, row.get("p_holm"))
    return described


def _conclude(
    one: _EvaluatedGate, evaluated: Sequence[_EvaluatedGate], vanilla: GateEvaluation, p: float | None
) -> str:
    """What a row allows to say, against the controls of its strength: of its action, and offsets of yes."""
    test = one.test
    controls = [
        other
        for other in evaluated
        if not one.is_control
        and other.is_control
        and other.action in (one.action, _OFFSET)
        and other.target == one.target
        and other.control_of in (None, one.source)
    ]
    with_offset = None
    if test.is_yes_no:
        with_offset = paired_difference(
            test.losses(with_offset=True), vanilla.losses(with_offset=True), test.clusters
        )
    return conclusion(
        paired_difference(test.losses(), vanilla.losses(), test.clusters),
        with_offset,
        {
            other.source: paired_difference(test.losses(), other.test.losses(), test.clusters)
            for other in controls
        },
        corrected_p=p,
    )


def row_name(row: Mapping[str, Any]) -> str:
    """What a table calls a row."""
    return str(row["source"]) if row["action"] == _OFFSET else f"{row['source']}, {row['action']}"


def correlations_within_layers(sources: Mapping[str, TruthScores]) -> dict[str, dict[str, float | None]]:
    """Pearson correlation of each pair of sources over heads, without the layers' means."""
    centered = {
        name: (scores.scores - scores.scores.mean(axis=1, keepdims=True)).ravel()
        for name, scores in sources.items()
    }
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {
            one: {other: float(np.corrcoef(a, b)[0, 1]) for other, b in centered.items()}
            for one, a in centered.items()
        }
    return {
        one: {other: r if np.isfinite(r) else None for other, r in row.items()} for one, row in found.items()
    }
