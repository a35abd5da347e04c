"""Scores of every kind from one model and some of its documents, each with its reliability.

The activations that several kinds read are captured once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.attribution import run
from truthgate_eval.attribution.run import AnswerSet, split_documents
from truthgate_eval.errors import ProbeError, check_choice
from truthgate_eval.gating.attention_layout import AttentionLayout, Site
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.inference.shared_prefix import SharedPrefixModel
from truthgate_eval.probing.artifact import describe_data
from truthgate_eval.probing.capture import capture
from truthgate_eval.probing.config import CONTEXT_GAIN, NO_CONTEXT, ProbeConfig, ScoreName
from truthgate_eval.probing.controls import Control
from truthgate_eval.probing.dataset import ProbeDataset
from truthgate_eval.probing.reliability import stepped_up_correlation
from truthgate_eval.probing.run import score_activations

Progress = Callable[[int], None]
_PROBES: tuple[ScoreName, ...] = ("accuracy", "auroc", "context-gain")
STUDY_KINDS = (*_PROBES, "gradient", "learned", "divergence", "direct-effect", "copy")


def _ignore(_: int) -> None:
    """No progress is shown."""


@dataclass(frozen=True, eq=False)
class Sequences:
    """The answers of a data set, and their token ids in the same order."""

    dataset: ProbeDataset
    tokens: Sequence[Sequence[int]]

    def of_groups(self, groups: set[int]) -> Sequences:
        """The answers to some questions.

        The data set's rows stay those of all documents: what a study has seen, `exclude_rows_of` leaves out.
        """
        chosen = [i for i, example in enumerate(self.dataset.examples) if example.group in groups]
        examples = [self.dataset.examples[i] for i in chosen]
        return Sequences(
            dataclasses.replace(self.dataset, examples=examples), [self.tokens[i] for i in chosen]
        )


@dataclass(eq=False)
class ScoreMaker:
    """Makes scores on some documents of a model.

    Attributes:
        model: The model, without a gate; with the images of all sequences.
        layout: Its attention heads.
        answers: The documents.
        sequences: The same documents' answers, as probes read them.
        without_context: Returns the same answers without their knowledge or image.
        metadata: Provenance of the model.
        site: Where the scores are measured.
        seeds: Fits of a learned gate.
        batch_size: Documents in a batch.
    """

    model: SharedPrefixModel
    layout: AttentionLayout
    answers: AnswerSet
    sequences: Sequences
    without_context: Callable[[], Sequences]
    metadata: dict[str, Any]
    site: Site = "post"
    seeds: int = 1
    batch_size: int = 8
    _captured: dict[bool, NDArray[np.float32]] = field(default_factory=dict)

    def make(self, kind: str, progress: Progress = _ignore) -> TruthScores:
        """The scores of a kind, with their reliability in the metadata (`docs/method.md#kinds-of-score`).

        Scores that are no mean over documents are made on two halves of the clusters as well.

        Args:
            kind: One of `STUDY_KINDS`.
            progress: Called with the number of documents or sequences done since the last call.

        Raises:
            ProbeError: The documents do not allow that kind, or are too few.
        """
        scores = self._make(kind, self.answers, progress)
        if scores.metadata.get("reliability") is None:
            halves = [
                self._make(kind, half, progress) for half in split_documents(self.answers, [0.5], seed=0)
            ]
            scores.metadata["reliability"] = stepped_up_correlation(halves[0].scores, halves[1].scores)
        return scores

    def _make(self, kind: str, answers: AnswerSet, progress: Progress) -> TruthScores:
        groups = {document.group for document in answers.documents}
        described = {**self.metadata, **describe_data(self.sequences.of_groups(groups).dataset)}
        options: dict[str, Any] = {"site": self.site, "progress": progress}
        if kind == "learned":
            return run.run_learned(self.model, self.layout, answers, described, seeds=self.seeds, **options)
        options["batch_size"] = self.batch_size
        if kind == "gradient":
            return run.run_gradient(self.model, self.layout, answers, described, **options)
        if kind == "direct-effect":
            return run.run_direct_effect(self.model, self.layout, answers, described, **options)
        if kind == "copy":
            return run.run_copying(self.model, self.layout, answers, described, progress=progress)
        chosen = np.isin(self.sequences.dataset.groups, sorted(groups))
        own = self._activations(True, progress)[chosen]
        if kind == "divergence":
            without = self._activations(False, progress)[chosen]
            return run.run_divergence(own, without, self._clusters(groups), described)
        return self._probe(kind, own, chosen, groups, progress)

    def _probe(
        self,
        kind: str,
        own: NDArray[np.float32],
        chosen: NDArray[np.bool_],
        groups: set[int],
        progress: Progress,
    ) -> TruthScores:
        dataset = self.sequences.of_groups(groups).dataset
        controls = []
        if kind == CONTEXT_GAIN:
            controls.append(Control(NO_CONTEXT, self._without.of_groups(groups).dataset))

        def activations(of: ProbeDataset) -> NDArray[np.float32]:
            return own if of is dataset else self._activations(False, progress)[chosen]

        config = ProbeConfig(score=check_choice("score", kind, _PROBES, ProbeError), solver="newton")
        return score_activations(
            activations, dataset, config, model_metadata=self.metadata, controls=controls
        )

    def _activations(self, with_context: bool, progress: Progress) -> NDArray[np.float32]:
        """Of all sequences, with or without their context; captured at the first call."""
        if with_context not in self._captured:
            sequences = self.sequences if with_context else self._without
            self._captured[with_context] = capture(
                self.model.model, [list(own) for own in sequences.tokens], site=self.site,
                batch_size=self.batch_size, layout=self.layout, forward=self.model, progress=progress,
            )  # fmt: skip
        return self._captured[with_context]

    @cached_property
    def _without(self) -> Sequences:
        return self.without_context().of_groups(set(self.sequences.dataset.groups.tolist()))

    def _clusters(self, groups: set[int]) -> list[object]:
        """Of each sequence of these questions, that of its document."""
        cluster = {
            document.group: own
            for document, own in zip(self.answers.documents, self.answers.clusters, strict=True)
        }
        examples = self.sequences.of_groups(groups).dataset.examples
        return [cluster[example.group] for example in examples]
