"""Warnings about scores that are not above chance, and how reliable scores are, of probes that were really fitted."""

from __future__ import annotations

import numpy as np
import pytest

from truthgate_eval.analysis.heads.chance import chance_warning
from truthgate_eval.analysis.heads.reliability import describe_reliability
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.probing.config import ProbeConfig
from truthgate_eval.probing.controls import Control
from truthgate_eval.probing.dataset import TokenizedDataset
from truthgate_eval.probing.run import score_activations

LAYERS, HEADS, WIDTH = 2, 6, 3


def probed(
    signal: float, *, score: str = "accuracy", wrong: int = 1, documents: int = 120, heads: int = HEADS
) -> TruthScores:
    """Scores of heads that know which word the answer is, and some of which know whether it is right.

    Args:
        signal: By how much the activations of right answers differ; a head's share of it grows with its number.
        score: The kind of score.
        wrong: Wrong answers to each question.
        documents: Questions.
        heads: How many of a layer's heads have the signal.
    """
    rng = np.random.default_rng(0)
    words = 1 + wrong
    right = rng.permutation(np.arange(documents) % words)
    labels = (np.arange(words) == right[:, None]).astype(np.int64).ravel()
    word = np.tile(np.arange(words), documents)
    x = rng.normal(size=(len(labels), LAYERS, HEADS, WIDTH))
    x[..., 0] += 9.0 * word[:, None, None]
    shares = np.where(np.arange(HEADS) < heads, np.linspace(0.5, 1.5, HEADS), 0.0)
    x[..., 1] += signal * labels[:, None, None] * shares
    data = TokenizedDataset([], labels, np.arange(len(labels)) // words, {}, "", {})
    controls = [Control("shuffled-labels")]
    config = ProbeConfig(solver="newton", score=score)  # type: ignore[arg-type]
    return score_activations(lambda _: x, data, config, model_metadata={"model": "m"}, controls=controls)


def test_a_probe_that_only_knows_the_word_is_warned_of_and_one_with_a_signal_is_not() -> None:
    text = str(chance_warning(probed(0.0)))
    assert text.startswith(("the mean score is not above chance: 0.", "the mean score is below chance: 0."))
    assert "with shuffled labels 0." in text and "heads are above it" not in text
    assert chance_warning(probed(2.0)) is None
    assert chance_warning(probed(0.0, score="auroc")) is not None
    assert chance_warning(probed(2.0, score="auroc")) is None


def test_scores_below_chance_are_explained() -> None:
    scores = probed(0.0)
    low = TruthScores(np.full((2, 3), 0.40), stderr=np.full((2, 3), 0.02), metadata=scores.metadata)
    text = str(chance_warning(low))
    assert text.startswith(
        "the mean score is below chance: 0.400 ± 0.020 against 0.5. A probe that finds nothing"
    )
    near = TruthScores(np.full((2, 3), 0.49), stderr=np.full((2, 3), 0.02), metadata=scores.metadata)
    assert str(chance_warning(near)) == "the mean score is not above chance: 0.490 ± 0.020 against 0.5"


def test_a_few_good_heads_are_counted_in_the_warning() -> None:
    scores = probed(20.0, heads=1, documents=40)
    assert scores.scores[:, 0].min() > 0.9
    assert scores.scores.mean() < 0.5 + 2 * scores.stderr.mean()  # type: ignore[union-attr]
    assert f"{LAYERS} of {LAYERS * HEADS} heads are above it" in str(chance_warning(scores))


def test_chance_is_the_share_of_the_more_frequent_label() -> None:
    """Three of four answers are wrong: a probe that calls everything wrong is right three times out of four."""
    scores = probed(0.0, wrong=3)
    assert scores.scores.mean() > 0.6
    assert "against 0.75" in str(chance_warning(scores))


@pytest.mark.parametrize("kind", ["gradient", "learned", None])
def test_nothing_is_said_of_other_kinds_and_of_scores_without_errors(kind: str | None) -> None:
    scores = np.full((2, 3), 0.3)
    assert chance_warning(TruthScores(scores, stderr=scores, metadata={"kind": kind})) is None
    assert chance_warning(TruthScores(scores, metadata={"kind": "accuracy"})) is None


def test_the_reliability_is_recorded_and_told_and_older_artifacts_have_a_lower_bound() -> None:
    scores = probed(1.0, documents=400)
    recorded = scores.metadata["validation_reliability"]
    assert 0.5 < recorded["within"] <= 1 and 0.5 < recorded["all"] <= 1
    ceiling = np.sqrt(recorded["within"])
    assert describe_reliability(scores) == (
        f"{recorded['all']:.2f} over all heads, {recorded['within']:.2f} within layers "
        f"(ceiling of a correlation within layers: {ceiling:.2f})"
    )
    old = TruthScores(scores.scores, stderr=scores.stderr, metadata={})
    text = str(describe_reliability(old))
    assert text.startswith("at least ") and "ceiling" not in text
    assert float(text.split("at least ")[-1].split()[0]) <= recorded["within"] + 0.02
    assert describe_reliability(TruthScores(scores.scores, metadata={})) is None
    assert "validation_reliability" not in probed(1.0, score="auroc").metadata
