"""Many questions about pictures, answered together: as the plain model answers each of them alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import tiny_vision_models as factories_vlm
from helpers.prompts import asked, questions
from PIL import Image

from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.inference.shared_prefix import SharedPrefixModel
from truthgate_eval.vision import question_engine as vlm_answers
from truthgate_eval.vision.loading import LoadOptions, load_vlm
from truthgate_eval.vision.model import VisionLanguageModel
from truthgate_eval.vision.question_engine import ImagePrompt, ImageQuestionEngine
from truthgate_eval.vision.shared_prefix import SharedPrefixVLM

Folder = Callable[[str], str]
MOST = 8
ENDINGS = [" Yes", " No, not at all", "no", " Yes, it is"]


def load(folder: str) -> VisionLanguageModel:
    return load_vlm(LoadOptions(folder, device="cpu"))


def share(vlm: VisionLanguageModel) -> ImageQuestionEngine:
    forward = SharedPrefixVLM(vlm, find_attention_layout(vlm.model).decoder)
    assert forward.supports_sharing and forward.supports_multi_image
    return ImageQuestionEngine(vlm, forward)


@pytest.fixture(params=factories_vlm.NAMES, scope="module")
def vlm(request: pytest.FixtureRequest, vlm_checkpoint: Folder) -> VisionLanguageModel:
    return load(vlm_checkpoint(request.param))


@pytest.fixture(scope="module")
def shared(vlm: VisionLanguageModel) -> ImageQuestionEngine:
    return share(vlm)


@pytest.fixture(scope="module")
def expected(vlm: VisionLanguageModel) -> list[str]:
    """What the plain model says to each question alone."""
    return [
        vlm.generate([vlm.prompt(text, len(shown))], [shown], max_new_tokens=MOST, do_sample=False)[0]
        for text, shown in questions()
    ]


@pytest.mark.parametrize("batch_size", [1, 8, "auto"])
def test_texts_are_those_of_the_plain_model_alone(
    shared: ImageQuestionEngine, expected: list[str], batch_size: int | str
) -> None:
    found = shared.generate(asked(shared), max_new_tokens=MOST, batch_size=batch_size)
    assert found == expected
    assert len(set(found)) > 8  # a model that always says the same would prove nothing


def test_losses_are_those_of_the_plain_model_alone(
    shared: ImageQuestionEngine, vlm: VisionLanguageModel, expected: list[str]
) -> None:
    found = shared.losses(asked(shared, ENDINGS), batch_size=4)
    losses = [
        vlm.losses([vlm.prompt(text, len(shown))], [answer], [shown])[0]
        for text, shown in questions()
        for answer in ENDINGS
    ]
    for mine, plain in zip(found, losses, strict=True):
        assert mine == (pytest.approx(plain[0], abs=1e-4), plain[1])
    greedy = [ImagePrompt(one.prompt, one.image_keys, one.load_images, text) for one, text in zip(asked(shared), expected, strict=True)]  # fmt: skip
    flags = [loss[1] for loss in shared.losses([one for one in greedy if one.answer], batch_size=4) if loss]
    assert sum(flags) > 4


def test_texts_are_the_same_where_pictures_stand_in_trunks(
    shared: ImageQuestionEngine, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trunks: list[int] = []
    plain = SharedPrefixModel.compute_prefix

    def trunk(self: Any, group: Any) -> Any:
        trunks.append(sum(token >= self.beyond for token in group.trunk))
        return plain(self, group)

    monkeypatch.setattr(SharedPrefixModel, "compute_prefix", trunk)
    monkeypatch.setattr(shared.forward, "prefix_pass_cost", -(10**6))  # however little a trunk saves
    assert shared.generate(asked(shared), max_new_tokens=MOST, batch_size=8) == expected
    assert sum(pictured > 0 for pictured in trunks) > 3


def test_a_picture_is_looked_at_once_however_often_it_is_asked_about(
    vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    plain = vlm_answers.encode_images

    def look(some: Any, decoder: Any, pictures: list[Image.Image]) -> Any:
        seen.append(len(pictures))
        return plain(some, decoder, pictures)

    shared = share(vlm)
    monkeypatch.setattr(vlm_answers, "encode_images", look)
    first = shared.generate(asked(shared), max_new_tokens=MOST, batch_size=3)
    assert sum(seen) == 5 and max(seen) == 3  # five pictures, though two questions show a copy
    assert shared.generate(asked(shared), max_new_tokens=MOST, batch_size=3) == first
    shared.losses(asked(shared, ENDINGS[:1]), batch_size=3)
    assert sum(seen) == 5
    shared.seen.for_model(torch.nn.Module())  # as if another model had been put in its place
    shared.generate(asked(shared), max_new_tokens=MOST, batch_size=3)
    assert sum(seen) == 10


def test_questions_about_different_pictures_run_in_one_batch(
    shared: ImageQuestionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[tuple[int, int]] = []
    plain = SharedPrefixVLM.embed

    def given(self: SharedPrefixVLM, tokens: torch.Tensor) -> Any:
        own = tokens[tokens >= self.beyond].numpy()
        passes.append((tokens.numel(), len({int(n) for n in self.starts.searchsorted(own, "right")})))
        return plain(self, tokens)

    monkeypatch.setattr(SharedPrefixVLM, "embed", given)
    few = [one for one in asked(shared) if len(one.prompt) < 200 and len(one.image_keys) == 1]
    shared.generate(few, max_new_tokens=1, batch_size="auto")
    assert max(passes)[1] == 5


def test_parts_that_do_not_fit_in_memory_together_are_run_one_after_another(
    shared: ImageQuestionEngine, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vlm_answers, "_PART", 1)
    parts = list(shared._split_by_memory(asked(shared), 1))
    assert len(parts) > 4 and sorted(i for part, _, _ in parts for i in part) == list(range(len(questions())))
    monkeypatch.setattr(vlm_answers, "_DECODED", 0)
    shared.seen.for_model(None)
    assert shared.generate(asked(shared), max_new_tokens=MOST, batch_size=1) == expected


def test_pictures_that_memory_does_not_hold_together_are_looked_at_in_halves(
    vlm: VisionLanguageModel, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    plain = vlm_answers.encode_images

    def look(some: Any, decoder: Any, pictures: list[Image.Image]) -> Any:
        sizes.append(len(pictures))
        if len(pictures) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(some, decoder, pictures)

    shared = share(vlm)
    monkeypatch.setattr(vlm_answers, "encode_images", look)
    assert shared.generate(asked(shared), max_new_tokens=MOST, batch_size=8) == expected
    assert sizes.count(1) == 5 and max(sizes) > 1
