"""One attribution run: from a model and its documents to a score artifact of another kind than a probe's."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.attribution.copying import copy_scores
from truthgate_eval.attribution.direct_effect import direct_effects
from truthgate_eval.attribution.divergence import context_divergence
from truthgate_eval.attribution.gradient import document_weights, gate_gradients
from truthgate_eval.attribution.learned import LearnedGate, LearnedGateConfig, learn_gate
from truthgate_eval.attribution.log_odds import AnswerDocument
from truthgate_eval.errors import ProbeError
from truthgate_eval.gating.attention_layout import AttentionLayout, Site
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.inference.shared_prefix import SharedPrefixModel
from truthgate_eval.probing.reliability import split_half_reliability
from truthgate_eval.probing.statistics import influence_stderr
from truthgate_eval.processes import ONE_PROCESS, Processes

Progress = Callable[[int], object]
# Every fifth cluster of documents chooses the epoch of a learned gate.
_HELD_OUT = 5


@dataclass(frozen=True, eq=False)
class AnswerSet:
    """The documents of a run, and what stands for them in statistics.

    Attributes:
        documents: Questions with right and wrong answers.
        strata: For each document what it should be balanced by: the right answer where all answers are yes or
            no, else the same for all.
        clusters: For each document what it shares with others, such as its image.
    """

    documents: Sequence[AnswerDocument]
    strata: Sequence[object]
    clusters: Sequence[object]

    @property
    def weights(self) -> NDArray[np.float64]:
        """Weight of each document; every stratum has the same."""
        return document_weights(self.strata)

    def subset(self, chosen: NDArray[np.bool_]) -> AnswerSet:
        """The documents where `chosen` [documents] is true."""
        indices = np.flatnonzero(chosen).tolist()
        return replace(
            self,
            documents=[self.documents[i] for i in indices],
            strata=[self.strata[i] for i in indices],
            clusters=[self.clusters[i] for i in indices],
        )


def split_documents(answers: AnswerSet, shares: Sequence[float], seed: int) -> list[AnswerSet]:
    """Parts of some documents that share no cluster.

    Args:
        answers: The documents.
        shares: Share of the clusters in each part but the last, which gets the rest.
        seed: Of the split.

    Raises:
        ProbeError: A part would be empty.
    """
    names = np.array([str(cluster) for cluster in answers.clusters])
    distinct = np.unique(names)
    order = np.random.default_rng(seed).permutation(len(distinct))
    ends = [*np.round(np.cumsum(shares) * len(distinct)).astype(int).tolist(), len(distinct)]
    parts = [order[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    if not all(len(part) for part in parts):
        raise ProbeError(f"{len(distinct)} documents that share nothing cannot be split: raise --limit")
    return [answers.subset(np.isin(names, distinct[part])) for part in parts]


def summarize_documents(
    values: NDArray[Any],
    weights: NDArray[np.float64],
    clusters: Sequence[object],
    metadata: Mapping[str, Any],
) -> TruthScores:
    """The artifact of a quantity that each document contributes to.

    Args:
        values: [documents, layers, heads].
        weights: [documents], adding up to 1.
        clusters: For each document what it shares with others.
        metadata: Provenance; `kind` says what the quantity is.

    Returns:
        The weighted mean over documents, its standard error by cluster, and in the metadata its split-half
        reliability.
    """
    names = np.array([str(cluster) for cluster in clusters])
    scores = np.tensordot(weights, values, 1)
    influence = np.moveaxis(weights[:, None, None] * (values - scores), 0, -1)
    return TruthScores(
        scores,
        stderr=influence_stderr(influence, names).astype(np.float32),
        metadata={
            **metadata,
            "score": metadata["kind"],
            "reliability": split_half_reliability(values, weights, names),
            "compared_documents": len(values),
            "clusters": len(set(names.tolist())),
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        },
    )


def run_gradient(
    model: SharedPrefixModel,
    layout: AttentionLayout,
    answers: AnswerSet,
    metadata: Mapping[str, Any],
    *,
    site: Site,
    batch_size: int,
    progress: Progress,
    processes: Processes = ONE_PROCESS,
) -> TruthScores:
    """An artifact of kind `gradient`, see `attribution.gradient`; the same in all processes."""
    values, odds = gate_gradients(
        model, layout, answers.documents, site=site, batch_size=batch_size, progress=progress,
        processes=processes,
    )  # fmt: skip
    own = {"kind": "gradient", "log_odds": _describe_odds(odds, answers.weights)}
    return processes.on_main(
        lambda: summarize_documents(values, answers.weights, answers.clusters, {**metadata, **own})
    )


def run_direct_effect(
    model: SharedPrefixModel,
    layout: AttentionLayout,
    answers: AnswerSet,
    metadata: Mapping[str, Any],
    *,
    site: Site,
    batch_size: int,
    progress: Progress,
    processes: Processes = ONE_PROCESS,
) -> TruthScores:
    """An artifact of kind `direct-effect`, see `attribution.direct_effect`; the same in all processes."""
    values = direct_effects(
        model, layout, answers.documents, site=site, batch_size=batch_size, progress=progress,
        processes=processes,
    )  # fmt: skip
    described = {**metadata, "kind": "direct-effect"}
    return processes.on_main(
        lambda: summarize_documents(values, answers.weights, answers.clusters, described)
    )


def run_copying(
    model: SharedPrefixModel,
    layout: AttentionLayout,
    answers: AnswerSet,
    metadata: Mapping[str, Any],
    *,
    progress: Progress,
    processes: Processes = ONE_PROCESS,
) -> TruthScores:
    """An artifact of kind `copy`, see `attribution.copying`, of the documents with something to copy.

    It is the same in all processes.
    """
    values, found = copy_scores(
        model.model, layout, answers.documents, progress=progress, processes=processes
    )
    own = answers.subset(np.isin(np.arange(len(answers.documents)), found))
    described = {**metadata, "kind": "copy"}
    return processes.on_main(lambda: summarize_documents(values, own.weights, own.clusters, described))


def run_divergence(
    with_context: NDArray[np.float32],
    without: NDArray[np.float32],
    clusters: Sequence[object],
    metadata: Mapping[str, Any],
) -> TruthScores:
    """An artifact of kind `divergence`, see `attribution.divergence`.

    Args:
        with_context: Activations [n, layers, heads, width] of the sequences.
        without: Of the same sequences without their context.
        clusters: For each sequence what it shares with others.
        metadata: Provenance.
    """
    values = context_divergence(with_context, without)
    weights = document_weights([None] * len(values))
    return summarize_documents(values, weights, clusters, {**metadata, "kind": "divergence"})


def run_learned(
    model: SharedPrefixModel,
    layout: AttentionLayout,
    answers: AnswerSet,
    metadata: Mapping[str, Any],
    *,
    site: Site,
    seeds: int,
    config: LearnedGateConfig | None = None,
    progress: Progress,
) -> TruthScores:
    """An artifact of kind `learned`, see `attribution.learned`.

    Its scores are g - 1, the mean over seeds, so that `lam=1,norm=none` is the learned gate.

    Raises:
        ProbeError: There are too few clusters of documents to hold some out.
    """
    config = config or LearnedGateConfig()
    names = sorted({str(cluster) for cluster in answers.clusters})
    if len(names) < _HELD_OUT:
        raise ProbeError(
            f"a learned gate needs {_HELD_OUT} documents that share nothing, found {len(names)}: "
            "raise --limit"
        )
    gates: list[LearnedGate] = []
    for seed in range(config.seed, config.seed + seeds):
        order = np.random.default_rng(seed).permutation(len(names))
        held_out_names = {names[i] for i in order[: len(names) // _HELD_OUT]}
        held_out = np.array([str(cluster) in held_out_names for cluster in answers.clusters])
        training, other = answers.subset(~held_out), answers.subset(held_out)
        gates.append(
            learn_gate(
                model, layout, training.documents, other.documents, config=replace(config, seed=seed),
                site=site, weights=(training.weights, other.weights), progress=progress,
            )
        )  # fmt: skip
    values = np.stack([gate.values - 1 for gate in gates])
    own = {
        "kind": "learned",
        "score": "learned",
        "learned": {
            "lr": config.lr,
            "penalty": config.penalty,
            "held_out_loss": [[_rounded(loss) for loss in gate.curve] for gate in gates],
            "chosen_epoch": [gate.chosen for gate in gates],
        },
        "recommended": {"lam": 1.0, "norm": "none", "site": site, "task": metadata.get("task")},
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    return TruthScores(
        values.mean(axis=0),
        seed_scores=values if len(values) > 1 else None,
        metadata={**metadata, **own},
    )


def _describe_odds(odds: NDArray[np.float32], weights: NDArray[np.float64]) -> dict[str, float]:
    """How well the model itself does on the documents."""
    return {
        "mean": _rounded(float(weights @ odds)),
        "right": _rounded(float(weights @ (odds > 0))),
        "log_loss": _rounded(float(weights @ np.logaddexp(0, -odds))),
    }


def _rounded(value: float) -> float:
    return round(value, 6)
