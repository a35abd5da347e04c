"""Many questions about images, answered together: as the plain model answers each of them alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import tiny_vision_models as factories_vlm
from helpers.prompts import image_prompts, questions
from PIL import Image

from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.inference import tuning
from truthgate_eval.inference.shared_prefix import SharedPrefixModel
from truthgate_eval.vision import question_engine, self_check
from truthgate_eval.vision.loading import LoadOptions, load_vlm
from truthgate_eval.vision.model import VisionLanguageModel
from truthgate_eval.vision.question_engine import ImagePrompt, ImageQuestionEngine
from truthgate_eval.vision.shared_prefix import SharedPrefixVLM

Folder = Callable[[str], str]
NEW_TOKENS = 8
ENDINGS = [" Yes", " No, not at all", "no", " Yes, it is"]


def load(folder: str) -> VisionLanguageModel:
    return load_vlm(LoadOptions(folder, device="cpu"))


def make_engine(vlm: VisionLanguageModel) -> ImageQuestionEngine:
    shared = self_check.load(vlm, find_attention_layout(vlm.model).decoder)
    assert shared.supports_sharing and shared.supports_multi_image
    return ImageQuestionEngine(vlm, shared)


@pytest.fixture(params=factories_vlm.NAMES, scope="module")
def vlm(request: pytest.FixtureRequest, vlm_checkpoint: Folder) -> VisionLanguageModel:
    return load(vlm_checkpoint(request.param))


@pytest.fixture(scope="module")
def engine(vlm: VisionLanguageModel) -> ImageQuestionEngine:
    return make_engine(vlm)


@pytest.fixture(scope="module")
def expected(vlm: VisionLanguageModel) -> list[str]:
    """What the plain model answers to each question alone."""
    return [
        vlm.generate([vlm.prompt(text, len(images))], [images], max_new_tokens=NEW_TOKENS, do_sample=False)[0]
        for text, images in questions()
    ]


@pytest.mark.parametrize("batch_size", [1, 8, "auto"])
def test_texts_are_those_of_the_plain_model_alone(
    engine: ImageQuestionEngine, expected: list[str], batch_size: int | str
) -> None:
    found = engine.generate(image_prompts(engine), max_new_tokens=NEW_TOKENS, batch_size=batch_size)
    assert found == expected
    assert len(set(found)) > 8  # a model that always says the same would prove nothing


def test_losses_are_those_of_the_plain_model_alone(
    engine: ImageQuestionEngine, vlm: VisionLanguageModel, expected: list[str]
) -> None:
    found = engine.losses(image_prompts(engine, ENDINGS), batch_size=4)
    losses = [
        vlm.losses([vlm.prompt(text, len(images))], [answer], [images])[0]
        for text, images in questions()
        for answer in ENDINGS
    ]
    for mine, plain in zip(found, losses, strict=True):
        assert mine == (pytest.approx(plain[0], abs=1e-4), plain[1])
    greedy = [ImagePrompt(one.prompt, one.image_keys, one.load_images, text) for one, text in zip(image_prompts(engine), expected, strict=True)]  # fmt: skip
    flags = [loss[1] for loss in engine.losses([one for one in greedy if one.answer], batch_size=4) if loss]
    assert sum(flags) > 4


def test_texts_are_the_same_where_images_are_in_shared_prefixes(
    engine: ImageQuestionEngine, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image_tokens: list[int] = []
    compute_prefix = SharedPrefixModel.compute_prefix

    def counted(self: Any, group: Any) -> Any:
        image_tokens.append(sum(token >= self.first_image_id for token in group.prefix))
        return compute_prefix(self, group)

    monkeypatch.setattr(SharedPrefixModel, "compute_prefix", counted)
    monkeypatch.setattr(engine.model, "prefix_pass_cost", -(10**6))  # however little a shared prefix saves
    assert engine.generate(image_prompts(engine), max_new_tokens=NEW_TOKENS, batch_size=8) == expected
    assert sum(count > 0 for count in image_tokens) > 3


def test_an_image_is_encoded_once_however_many_questions_there_are(
    vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode_images = question_engine.encode_images

    def counted(some: Any, decoder: Any, images: list[Image.Image]) -> Any:
        encoded.append(len(images))
        return encode_images(some, decoder, images)

    engine = make_engine(vlm)
    monkeypatch.setattr(question_engine, "encode_images", counted)
    first = engine.generate(image_prompts(engine), max_new_tokens=NEW_TOKENS, batch_size=3)
    assert sum(encoded) == 5 and max(encoded) == 3  # five images, though two questions have a copy
    assert engine.generate(image_prompts(engine), max_new_tokens=NEW_TOKENS, batch_size=3) == first
    engine.losses(image_prompts(engine, ENDINGS[:1]), batch_size=3)
    assert sum(encoded) == 5
    engine.feature_cache.for_model(torch.nn.Module())  # as if another model had been put in its place
    engine.generate(image_prompts(engine), max_new_tokens=NEW_TOKENS, batch_size=3)
    assert sum(encoded) == 10


def test_questions_about_different_images_run_in_one_batch(
    engine: ImageQuestionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[tuple[int, int]] = []
    embed = SharedPrefixVLM.embed

    def counted(self: SharedPrefixVLM, token_ids: torch.Tensor) -> Any:
        own = token_ids[token_ids >= self.first_image_id].numpy()
        passes.append((token_ids.numel(), len({int(n) for n in self.first_ids.searchsorted(own, "right")})))
        return embed(self, token_ids)

    monkeypatch.setattr(SharedPrefixVLM, "embed", counted)
    few = [one for one in image_prompts(engine) if len(one.prompt) < 200 and len(one.image_keys) == 1]
    engine.generate(few, max_new_tokens=1, batch_size="auto")
    assert max(passes)[1] == 5


def test_parts_that_do_not_fit_in_memory_together_are_run_one_after_another(
    engine: ImageQuestionEngine, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "PLANNED_FEATURE_BYTES", 1)
    parts = list(engine._split_by_memory(image_prompts(engine), 1))
    assert len(parts) > 4 and sorted(i for part in parts for i in part.indices) == list(
        range(len(questions()))
    )
    monkeypatch.setattr(tuning, "DECODED_IMAGE_BYTES", 0)
    engine.feature_cache.for_model(None)
    assert engine.generate(image_prompts(engine), max_new_tokens=NEW_TOKENS, batch_size=1) == expected


def test_images_that_do_not_fit_in_memory_together_are_encoded_in_halves(
    vlm: VisionLanguageModel, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    encode_images = question_engine.encode_images

    def small_memory(some: Any, decoder: Any, images: list[Image.Image]) -> Any:
        sizes.append(len(images))
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode_images(some, decoder, images)

    engine = make_engine(vlm)
    monkeypatch.setattr(question_engine, "encode_images", small_memory)
    assert engine.generate(image_prompts(engine), max_new_tokens=NEW_TOKENS, batch_size=8) == expected
    assert sizes.count(1) == 5 and max(sizes) > 1
