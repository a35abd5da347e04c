"""One class from a checkpoint on disk to probes and gated answers, each held against plain transformers."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scripts.model_classes.families import Family
from scripts.model_classes.subjects import (
    ANSWERS,
    NEW_TOKENS,
    PlainModel,
    Question,
    Subject,
    image_subject,
    text_subject,
)
from truthgate_eval.errors import reason_of
from truthgate_eval.gating.attention_layout import SITES
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.vision.image_tokens import ImageMismatchError

LAM = 2.0
EQUAL = "equal"


@dataclass
class FamilyRow:
    """What was found about a class.

    Attributes:
        family: The class.
        heads: Layers and heads that were found.
        probed: `equal`, or how activations differ from those of generating the answer.
        live: `equal`, or how the live gate's texts differ from a gate's by hand.
        folded: The same, folded into the weights.
        texts: `equal`, or how the vanilla model's texts differ from plain `generate`.
        prefixes: `shared`, `shared, one picture` or `plain path`.
        notes: Why prefixes are not shared, and what is not supported.
    """

    family: Family
    heads: str = ""
    probed: str = ""
    live: str = ""
    folded: str = ""
    texts: str = ""
    prefixes: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def is_right(self) -> bool:
        """Whether nothing differs and nothing failed."""
        return {self.probed, self.live, self.folded, self.texts} == {EQUAL} and bool(self.heads)


def run_family(family: Family) -> FamilyRow:
    """Everything about one class; no exception leaves it."""
    row = FamilyRow(family)
    with tempfile.TemporaryDirectory() as folder:
        try:
            _examine(row, Path(folder))
        except Exception as error:  # whatever a class's processor or model raises
            row.notes.append(f"RAW {reason_of(error)}")
    return row


def _examine(row: FamilyRow, folder: Path) -> None:
    subject, plain = (image_subject if row.family.has_images else text_subject)(row.family, folder)
    layers, heads = subject.shape()
    row.heads = f"{layers} x {heads}"
    reason, multi_reason = subject.sharing()
    row.prefixes = "plain path" if reason else "shared, one picture" if multi_reason else "shared"
    why = _without_numbers(reason or multi_reason or "")
    row.notes += [f"{row.prefixes}: {why} ({row.family.why})"] if why else []
    row.notes += subject.limits()
    kinds = _supported(row, subject, plain)
    questions = [question for kind in kinds for question in subject.questions[kind]]
    row.texts = _compare_vanilla(subject, plain, questions)
    row.probed = _compare_activations(subject, plain, questions)
    values = np.random.default_rng(0).uniform(0.5, 1.0, (layers, heads))
    scores = str(TruthScores(values, metadata={"model": "random"}).save(folder / "scores.npz"))
    low, high = values.min(1, keepdims=True), values.max(1, keepdims=True)
    gate = 1 + LAM * (values - low) / (high - low + 1e-6)
    found: dict[str, list[str]] = {"live": [], "folded": []}
    for site in SITES:
        by_hand = plain.gated(gate, site)
        for mode, results in found.items():
            arguments = {"scores": scores, "lam": LAM, "norm": "minmax", "site": site, "mode": mode}
            results.append(_compare_gated(subject, plain, by_hand, questions, arguments))
    row.live, row.folded = (
        next((one for one in results if one != EQUAL), EQUAL) for results in found.values()
    )


def _without_numbers(reason: str) -> str:
    """A self check's reason, without what rounding changes from machine to machine."""
    reason = reason.removeprefix(f"{ImageMismatchError.__name__}: ")
    return re.sub(r"differ by \S+ from (.*) \(allowed \S+\)$", r"differ from \1", reason)


def _supported(row: FamilyRow, subject: Subject, plain: PlainModel) -> list[str]:
    """The kinds of question that transformers and the package take; a note about each other one."""
    kinds = []
    for kind, questions in subject.questions.items():
        try:
            plain.text(questions[0].text, questions[0].images, NEW_TOKENS)
            subject.texts(questions[:1], {"scores": "none"})
        except Exception as error:  # processors refuse what they cannot read in their own words
            row.notes.append(f"{kind}: refused, {reason_of(error)}")
        else:
            kinds.append(kind)
    return kinds


def _compare_vanilla(subject: Subject, plain: PlainModel, questions: Sequence[Question]) -> str:
    """Answers without a gate, in batches of 1 and of 3, against one question at a time."""
    expected = _texts(plain, questions)
    if len(set(expected)) < 3:
        return "the model says the same to all"
    results = [_compare_texts(subject, expected, questions, {"scores": "none"}, size) for size in (1, 3)]
    return next((one for one in results if one != EQUAL), EQUAL)


def _compare_gated(
    subject: Subject,
    plain: PlainModel,
    by_hand: PlainModel,
    questions: Sequence[Question],
    arguments: dict[str, Any],
) -> str:
    """Logits and answers of a gated model, in batches of 3, against those of a gate by hand.

    Args:
        subject: The package's side.
        plain: The oracle without a gate.
        by_hand: The oracle with it.
        questions: The questions.
        arguments: The gate's.
    """
    vanilla, expected = (
        np.stack([model.logits(question.text, question.images) for question in questions])
        for model in (plain, by_hand)
    )
    tolerance = 1e-4 * float(np.abs(expected).max())
    if np.abs(expected - vanilla).max() < 100 * tolerance:
        return "the gate changes nothing"
    difference = float(np.abs(subject.logits(questions, arguments) - expected).max())
    if difference > tolerance:
        return f"logits differ by {difference:.1e} at {arguments['site']}"
    return _compare_texts(subject, _texts(by_hand, questions), questions, arguments, 3)


def _texts(plain: PlainModel, questions: Sequence[Question]) -> list[str]:
    return [plain.text(question.text, question.images, NEW_TOKENS) for question in questions]


def _compare_texts(
    subject: Subject,
    expected: Sequence[str],
    questions: Sequence[Question],
    arguments: dict[str, Any],
    batch_size: int,
) -> str:
    found = subject.texts(questions, {**arguments, "batch_size": batch_size})
    wrong = sum(one != other for one, other in zip(found, expected, strict=True))
    return f"{wrong} of {len(expected)} texts differ in batches of {batch_size}" if wrong else EQUAL


def _compare_activations(subject: Subject, plain: PlainModel, questions: Sequence[Question]) -> str:
    for site in SITES:
        found = subject.activations(questions, site)
        expected = np.stack(
            [
                plain.activations(prompt, plain.answer(prompt, answer), question.images, site)
                for question in questions
                for prompt in [plain.prompt(question.text, len(question.images))]
                for answer in ANSWERS
            ]
        )
        difference, largest = (np.abs(values).max(axis=(0, 2)) for values in (found - expected, expected))
        if (difference > 1e-5 * largest).any():
            return f"differs by {difference.max():.1e} at {site}"
    return EQUAL
