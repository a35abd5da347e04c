from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_vision_models as factories

from truthgate_eval.attribution import run, study_scores
from truthgate_eval.attribution.divergence import context_divergence
from truthgate_eval.attribution.image_answers import tokenize_with_images
from truthgate_eval.attribution.run import AnswerSet
from truthgate_eval.attribution.study_scores import STUDY_KINDS, ScoreMaker, Sequences
from truthgate_eval.cli.attribution_jobs import answer_set
from truthgate_eval.errors import ProbeError
from truthgate_eval.gating.attention_layout import Site, find_attention_layout
from truthgate_eval.harness.lmms_eval.probing import load_for_probing
from truthgate_eval.probing.artifact import describe_model
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample
from truthgate_eval.probing.image_capture import capture_with_images
from truthgate_eval.probing.image_conditions import NONE, apply_image_condition
from truthgate_eval.probing.reliability import split_half_reliability, stepped_up_correlation
from truthgate_eval.vision import self_check
from truthgate_eval.vision.model import VisionLanguageModel


def dataset(images: int) -> ProbeDataset:
    """Two questions about each image."""
    examples = []
    for group in range(2 * images):
        load_images = partial(lambda seed: [factories.random_image(seed)], group // 2)
        for answer in ("Yes", "No"):
            right = (answer == "Yes") == (group % 3 == 0)
            question = "Is there a dog?" if group % 2 else "Is it a cat?"
            examples.append(ProbeExample(question, f" {answer}", right, group, load_images, group // 2))
    return ProbeDataset(examples, {}, {"task": "made"}, bare_questions=True)


def make(folder: Path, name: str, images: int, site: Site = "post") -> tuple[VisionLanguageModel, ScoreMaker]:
    arguments = {"pretrained": factories.save(folder, name), "dtype": "float32"}
    vlm = load_for_probing("vlm", arguments, device="cpu", chat=True)
    layout = find_attention_layout(vlm.model)
    data = dataset(images)
    bare = self_check.load(vlm, layout.decoder)
    shared, tokens = tokenize_with_images(bare, data)

    def without() -> Sequences:
        changed = apply_image_condition(data, NONE)
        return Sequences(changed, tokenize_with_images(bare, changed)[1])

    metadata = describe_model(vlm.model, vlm.name, layout, site)
    answers = answer_set(tokens, data)
    return vlm, ScoreMaker(shared, layout, answers, Sequences(data, tokens), without, metadata, site)


@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_divergence_with_images_equals_that_of_the_whole_models_activations(
    name: str, site: Site, tmp_path: Path
) -> None:
    vlm, maker = make(tmp_path, name, 3, site)
    data = maker.sequences.dataset
    plain = [capture_with_images(vlm, of, site=site) for of in (data, apply_image_condition(data, NONE))]
    expected = context_divergence(*plain).mean(axis=0)
    found = maker.make("divergence")
    assert np.allclose(found.scores, expected, atol=1e-4 * np.abs(expected).max())
    assert found.metadata["kind"] == "divergence" and found.metadata["clusters"] == 3


def test_every_kind_has_scores_and_a_reliability_from_one_capture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, maker = make(tmp_path, "llava", 12)
    captures: list[int] = []
    real = study_scores.capture

    def counting(model: Any, sequences: Any, **options: Any) -> Any:
        captures.append(len(sequences))
        return real(model, sequences, **options)

    monkeypatch.setattr(study_scores, "capture", counting)
    for kind in STUDY_KINDS:
        if kind in ("copy", "learned"):
            continue
        scores = maker.make(kind)
        assert scores.shape == maker.layout.shape
        assert scores.metadata.get("kind", scores.metadata["score"]) == kind
        assert set(scores.metadata["reliability"]) == {"all", "within"}
    assert captures == [48, 48]  # with the image and without, for five kinds and their halves


def test_a_probes_reliability_is_that_of_two_halves_without_a_common_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, maker = make(tmp_path, "llava", 12)
    halves: list[AnswerSet] = []
    made: dict[int, Any] = {}
    real = ScoreMaker._make

    def recording(self: ScoreMaker, kind: str, answers: AnswerSet, progress: Any) -> Any:
        halves.append(answers)
        made[len(halves)] = real(self, kind, answers, progress)
        return made[len(halves)]

    monkeypatch.setattr(ScoreMaker, "_make", recording)
    scores = maker.make("accuracy")
    everything, one, other = halves
    assert not set(one.clusters) & set(other.clusters)
    assert len(one.documents) + len(other.documents) == len(everything.documents) == 24
    expected = stepped_up_correlation(made[2].scores, made[3].scores)
    assert scores.metadata["reliability"] == pytest.approx(expected, abs=1e-5)


def test_kinds_are_made_on_the_documents_of_the_answers_alone(tmp_path: Path) -> None:
    _, maker = make(tmp_path, "llava", 6)
    chosen = np.arange(12) < 6
    part = dataclasses.replace(maker, answers=maker.answers.subset(chosen))
    own = run.run_gradient(
        maker.model, maker.layout, maker.answers.subset(chosen), {}, site="post", batch_size=8,
        progress=lambda _: None,
    )  # fmt: skip
    assert np.allclose(part.make("gradient").scores, own.scores, atol=1e-6)
    groups = {document.group for document in part.answers.documents}
    assert part.make("divergence").metadata["compared_documents"] == 2 * len(groups)


def test_few_clusters_and_equal_heads_have_no_reliability() -> None:
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=(6, 2, 3)), np.full(6, 1 / 6)
    found = split_half_reliability(values, weights, np.arange(6))
    assert set(found) == {"all", "within"} and all(-1 <= r <= 1 for r in found.values())
    assert split_half_reliability(values, weights, np.array([0, 0, 0, 1, 1, 2])) == {}
    assert split_half_reliability(np.ones((6, 2, 3)), weights, np.arange(6)) == {}
    assert stepped_up_correlation(values[0], -values[0]) == pytest.approx({"all": -1, "within": -1})


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    _, maker = make(tmp_path, "llava", 2)
    with pytest.raises(ProbeError, match="nonsense"):
        maker.make("nonsense")
