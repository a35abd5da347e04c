"""Gates of several kinds of scores side by side, at equal strength, evaluated once on fresh documents.

Every row is one gate: scores of one kind, an action, and a strength at which the gated model's next-token
distribution is a given divergence away from the vanilla model's (`gating.strength`). Its controls have the
same strength: the same scores shuffled within layers, and a random gate.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from truthgate_eval.attribution.evaluation import (
    GateEvaluation,
    conclusion,
    describe,
    measure_log_odds,
    paired_difference,
)
from truthgate_eval.attribution.run import AnswerSet
from truthgate_eval.attribution.study_gates import Direction, make_directions
from truthgate_eval.errors import ProbeError
from truthgate_eval.files import read_json, write_atomic
from truthgate_eval.gating.attention_layout import AttentionLayout, Site
from truthgate_eval.gating.gate import Gate, attach
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.gating.strength import find_strength
from truthgate_eval.inference.next_token_divergence import NextTokenDivergence
from truthgate_eval.inference.shared_prefix import SharedPrefixModel

_PROMPTS = 64


@dataclass(frozen=True)
class StudyConfig:
    """What a study compares.

    Attributes:
        site: Where the gates act.
        targets: Divergences from the vanilla model, in nats.
        select: How many heads the action `select` amplifies, and how many it weakens; 0 leaves it out.
        shuffles: How many shuffled controls each kind of score has.
        randoms: How many random gates there are.
        batch_size: Documents in a batch.

    Raises:
        ProbeError: A number is out of its range.
    """

    site: Site = "post"
    targets: tuple[float, ...] = (0.005, 0.02)
    select: int = 20
    shuffles: int = 2
    randoms: int = 2
    batch_size: int = 8

    def __post_init__(self) -> None:
        if not self.targets or not all(target > 0 for target in self.targets):
            raise ProbeError(f"targets={self.targets}: expected positive divergences")
        if min(self.select, self.shuffles, self.randoms) < 0 or self.batch_size < 1:
            raise ProbeError("a number of heads, controls or documents is negative")


@dataclass(eq=False)
class StudyResult:
    """The rows of a study.

    Attributes:
        vanilla: Figures of the model without a gate.
        rows: One for each gate, with its figures and conclusion.
        reliability: For each source, what its artifact says of its reliability.
        correlations: Pearson correlation within layers of each pair of sources.
    """

    vanilla: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    reliability: dict[str, Any] = field(default_factory=dict)
    correlations: dict[str, dict[str, float]] = field(default_factory=dict)


def run_study(
    model: SharedPrefixModel,
    layout: AttentionLayout,
    sources: Mapping[str, TruthScores],
    scoring: AnswerSet,
    test: AnswerSet,
    *,
    config: StudyConfig,
    folder: Path,
    key: Mapping[str, Any],
    progress: Callable[[int], object] = lambda _: None,
) -> StudyResult:
    """Evaluate every gate; a row that the folder holds already is not computed again.

    Args:
        model: The model, without a gate.
        layout: Its attention heads.
        sources: Scores by name.
        scoring: The documents that the scores may have seen; their contexts find the strengths.
        test: Fresh documents.
        config: What is compared.
        folder: Where each row is kept as soon as it is done.
        key: Everything else that decides the result: the model's fingerprint, tasks, limits.
        progress: Called with 1 after each row.

    Raises:
        GateError: A gate changes nothing, whatever its strength.
    """
    directions = make_directions(
        sources, layout.shape, select=config.select, shuffles=config.shuffles, randoms=config.randoms
    )
    strata, clusters = test.strata, test.clusters
    base_key = {
        **key,
        "site": config.site,
        "scoring": _digest([document.sequences for document in scoring.documents]),
        "test": _digest([document.sequences for document in test.documents]),
    }

    def evaluate() -> GateEvaluation:
        return GateEvaluation(
            measure_log_odds(model, test.documents, batch_size=config.batch_size), strata, clusters
        )

    def kept(row_key: Any, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        file = folder / f"row-{_digest({**base_key, 'row': row_key})[:24]}.json"
        if file.is_file():
            return read_json(file)
        row = compute()
        write_atomic(file, json.dumps(row).encode())
        return row

    vanilla = GateEvaluation(
        np.array(kept("vanilla", lambda: {"odds": evaluate().odds.tolist()})["odds"]), strata, clusters
    )
    progress(1)
    contexts = [document.sequences[0][: document.context_length] for document in scoring.documents[:_PROMPTS]]
    divergence: NextTokenDivergence | None = None
    rows: list[dict[str, Any]] = []
    for direction in directions:
        for target in config.targets:

            def compute(direction: Direction = direction, target: float = target) -> dict[str, Any]:
                nonlocal divergence
                divergence = divergence or NextTokenDivergence(model, contexts, batch_size=config.batch_size)
                with attach(model.model, _gate(direction, 0.0, config.site), layout=layout) as handle:

                    def at(strength: float) -> float:
                        handle.set(_gate(direction, strength, config.site))
                        assert divergence is not None
                        return divergence.mean()

                    strength, reached = find_strength(at, target)
                    handle.set(_gate(direction, strength, config.site))
                    odds = evaluate().odds
                return {"strength": strength, "divergence": reached, "odds": odds.tolist()}

            row_key = [direction.name, target, hashlib.sha256(direction.values.tobytes()).hexdigest()]
            found = kept(row_key, compute)
            evaluation = GateEvaluation(np.array(found["odds"]), strata, clusters)
            rows.append(
                {
                    "source": direction.source,
                    "action": direction.action,
                    "control_of": direction.control_of,
                    "target": target,
                    "strength": found["strength"],
                    "divergence": found["divergence"],
                    **describe(evaluation, vanilla),
                    "_evaluation": evaluation,
                }
            )
            progress(1)
    _conclude(rows, vanilla)
    return StudyResult(
        {**vanilla.summary(), "documents": len(test.documents), "clusters": len(set(map(str, clusters)))},
        rows,
        {name: scores.metadata.get("reliability") for name, scores in sources.items()},
        correlations_within_layers(sources),
    )


def _gate(direction: Direction, strength: float, site: Site) -> Gate:
    return Gate((1.0 + strength * direction.values).astype(np.float32), site)


def _conclude(rows: list[dict[str, Any]], vanilla: GateEvaluation) -> None:
    """Add each row's conclusion, against the controls of its action and strength."""
    for row in rows:
        evaluation: GateEvaluation = row["_evaluation"]
        controls = [
            other["_evaluation"]
            for other in rows
            if not is_control(row)
            and other["action"] == row["action"]
            and other["target"] == row["target"]
            and (other["control_of"] == row["source"] or other["source"].startswith("random "))
            and other is not row
        ]
        clusters = evaluation.clusters
        with_offset = None
        if evaluation.is_yes_no:
            with_offset = paired_difference(
                evaluation.losses(with_offset=True), vanilla.losses(with_offset=True), clusters
            )
        row["conclusion"] = conclusion(
            paired_difference(evaluation.losses(), vanilla.losses(), clusters),
            with_offset,
            [paired_difference(evaluation.losses(), other.losses(), clusters) for other in controls],
        )
    for row in rows:
        del row["_evaluation"]


def is_control(row: Mapping[str, Any]) -> bool:
    """Whether a row is a shuffled or a random gate."""
    return row["control_of"] is not None or row["source"].startswith("random ")


def correlations_within_layers(sources: Mapping[str, TruthScores]) -> dict[str, dict[str, float]]:
    """Pearson correlation of each pair of sources over heads, each layer's mean taken off."""
    centered = {
        name: (scores.scores - scores.scores.mean(axis=1, keepdims=True)).ravel()
        for name, scores in sources.items()
    }
    return {
        one: {other: float(np.corrcoef(a, b)[0, 1]) for other, b in centered.items()}
        for one, a in centered.items()
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def split_documents(answers: AnswerSet, share: float, seed: int) -> tuple[AnswerSet, AnswerSet]:
    """Two parts of some documents that share no cluster.

    Args:
        answers: The documents.
        share: Share of the clusters in the first part.
        seed: Of the split.

    Raises:
        ProbeError: A part would be empty.
    """
    names = np.array([str(cluster) for cluster in answers.clusters])
    distinct = np.unique(names)
    order = np.random.default_rng(seed).permutation(len(distinct))
    count = round(share * len(distinct))
    if not 0 < count < len(distinct):
        raise ProbeError(f"{len(distinct)} documents that share nothing cannot be split: raise --limit")
    first = np.isin(names, distinct[order[:count]])
    return answers.subset(first), answers.subset(~first)
