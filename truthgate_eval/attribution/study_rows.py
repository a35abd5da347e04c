"""One gate of a study: the strength that moves the model by a given divergence, and the answers under it.

Everything that was computed is kept in a folder, under a key of all that decides it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from truthgate_eval.attribution.evaluation import GateEvaluation, measure_log_odds
from truthgate_eval.attribution.study_documents import StudyDocuments
from truthgate_eval.attribution.study_gates import Direction
from truthgate_eval.errors import DataError, GateError
from truthgate_eval.files import read_json, write_atomic
from truthgate_eval.gating.attention_layout import AttentionLayout
from truthgate_eval.gating.gate import attach
from truthgate_eval.gating.strength import find_strength
from truthgate_eval.gating.yes_offset import offset_divergence
from truthgate_eval.inference.next_token_divergence import NextTokenDivergence
from truthgate_eval.inference.shared_prefix import SharedPrefixModel

log = logging.getLogger(__name__)

# Prompts that the divergence is measured on.
_PROMPTS = 64


class StudyRows:
    """The measurements of one model, computed once.

    Attributes:
        documents: The study's documents.
    """

    def __init__(
        self,
        model: SharedPrefixModel,
        layout: AttentionLayout,
        documents: StudyDocuments,
        *,
        folder: Path,
        key: Mapping[str, Any],
        batch_size: int = 8,
    ) -> None:
        """Measurements that the folder holds are read from it.

        Args:
            model: The model, without a gate.
            layout: Its attention heads.
            documents: The study's documents.
            folder: Where each measurement is kept as soon as it is done.
            key: Everything else that decides the result: the model's fingerprint, tasks, limits.
            batch_size: Documents in a batch.
        """
        self.documents = documents
        self._model, self._layout, self._folder, self._batch_size = model, layout, folder, batch_size
        parts = {name: value for name, value in vars(documents).items() if value is not None}
        self._key = {
            **key,
            **{
                name: _digest([document.sequences for document in answers.documents])
                for name, answers in parts.items()
            },
        }
        self._divergence: NextTokenDivergence | None = None

    def vanilla(self, part: str) -> GateEvaluation:
        """The model's answers without a gate."""
        return self._evaluation(part, ["vanilla", part], lambda: self._log_odds(part))

    def strength(self, direction: Direction, target: float) -> tuple[float, float]:
        """The strength at which a gate's divergence is the target, and what it is there.

        The prompts are contexts of the scoring documents. For a direction with a strength of its own, the
        target is not read.

        Raises:
            GateError: No strength reaches the target.
        """

        def compute() -> dict[str, Any]:
            divergence = self._next_token_divergence()
            with attach(self._model.model, direction.gate(0.0), layout=self._layout) as handle:

                def at(strength: float) -> float:
                    handle.set(direction.gate(strength))
                    return divergence.mean()

                if direction.strength is not None:
                    found = direction.strength, at(direction.strength)
                else:
                    found = find_strength(at, target)
            return {"strength": found[0], "divergence": found[1]}

        chosen = direction.strength is None and target
        row_key = [_fingerprint(direction), "strength", chosen]
        kept = self._kept(row_key, compute, {"strength": None, "divergence": None})
        return kept["strength"], kept["divergence"]

    def gated(self, direction: Direction, strength: float, part: str) -> GateEvaluation:
        """The model's answers under a gate."""
        gate = direction.gate(strength)

        def compute() -> NDArray[np.float64]:
            with attach(self._model.model, gate, layout=self._layout):
                return self._log_odds(part)

        return self._evaluation(part, [gate.fingerprint, part], compute)

    def offset(self, target: float, sign: int) -> tuple[float, float, GateEvaluation, GateEvaluation] | None:
        """A constant on the logit of yes (or of no) with the divergence `target`, which needs no run.

        Args:
            target: Divergence from the vanilla model, in nats.
            sign: 1 to say yes more often, -1 to say it less often.

        Returns:
            The constant, its divergence, and the answers to the scoring and the test documents; None where
            answers are not yes and no, or no constant moves the model that far.
        """
        scoring, test = self.vanilla("scoring"), self.vanilla("test")
        if not (scoring.is_yes_no and test.is_yes_no):
            return None
        prompts = len(self._contexts())
        kept = self._kept(
            ["log p(yes)"], lambda: {"yes": self._log_probability_of_yes().tolist()}, {"yes": prompts}
        )
        yes = torch.tensor(kept["yes"])[:, None]
        try:
            offset, reached = find_strength(lambda size: offset_divergence(yes, [0], sign * size), target)
        except GateError:  # a model that is certain of yes hardly moves
            return None
        return sign * offset, reached, scoring.with_offset(sign * offset), test.with_offset(sign * offset)

    def _log_probability_of_yes(self) -> torch.Tensor:
        """Of the first tokens of the answer yes, after each prompt of the divergence: float32 [prompts]."""
        scoring = self.documents.scoring
        tokens = {
            sequence[document.context_length]
            for document, stratum in zip(scoring.documents, scoring.strata, strict=True)
            for sequence, truthful in zip(document.sequences, document.truthful, strict=True)
            if truthful == (stratum == "yes")
        }
        return self._next_token_divergence().reference[:, sorted(tokens)].logsumexp(dim=-1)

    def _next_token_divergence(self) -> NextTokenDivergence:
        """From the model without a gate: call it before one is attached."""
        if self._divergence is None:
            self._divergence = NextTokenDivergence(self._model, self._contexts(), batch_size=self._batch_size)
        return self._divergence

    def _contexts(self) -> list[Sequence[int]]:
        documents = self.documents.scoring.documents[:_PROMPTS]
        return [document.sequences[0][: document.context_length] for document in documents]

    def _log_odds(self, part: str) -> NDArray[np.float64]:
        return measure_log_odds(self._model, self.documents.part(part).documents, batch_size=self._batch_size)

    def _evaluation(
        self, part: str, row_key: Any, compute: Callable[[], NDArray[np.float64]]
    ) -> GateEvaluation:
        answers = self.documents.part(part)
        row = self._kept(row_key, lambda: {"odds": compute().tolist()}, {"odds": len(answers.documents)})
        return GateEvaluation(np.array(row["odds"]), answers.strata, answers.clusters)

    def _kept(
        self, row_key: Any, compute: Callable[[], dict[str, Any]], lengths: Mapping[str, int | None]
    ) -> dict[str, Any]:
        """What the folder holds under a key, else what is computed and kept now; see `read_row`."""
        file = self._folder / f"row-{_digest({**self._key, 'row': row_key})[:24]}.json"
        row = read_row(file, lengths) if file.exists() else None
        if row is None:
            row = compute()
            write_atomic(file, json.dumps(row).encode())
        return row


def read_row(file: Path, lengths: Mapping[str, int | None]) -> dict[str, Any] | None:
    """What a row's file holds; None, with a warning, where the file is damaged.

    Args:
        file: The file.
        lengths: The row's names, each with the length of its list of numbers; None for one number.
    """
    try:
        found = read_json(file)
    except DataError:
        found = None
    if isinstance(found, dict) and all(_fits(found.get(name), length) for name, length in lengths.items()):
        return found
    log.warning("%s is damaged: what it held is done again", file)
    return None


def _fits(value: object, length: int | None) -> bool:
    """Whether a value is a number, or a list of so many."""
    if length is None:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return isinstance(value, list) and len(value) == length and all(_fits(item, None) for item in value)


def _fingerprint(direction: Direction) -> str:
    return direction.gate(1.0).fingerprint


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
