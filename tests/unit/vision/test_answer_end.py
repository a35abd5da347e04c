"""Losses of answers do not depend on what tokenizer and processor add after them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import transformers as hf
from helpers import tiny_vision_models
from tokenizers.processors import TemplateProcessing

from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.vision import self_check
from truthgate_eval.vision.loading import LoadOptions, load_vlm
from truthgate_eval.vision.model import VisionLanguageModel
from truthgate_eval.vision.question_engine import ImagePrompt, ImageQuestionEngine

ANSWERS = [" Yes", " No, not at all", "no", " Yes, it is.", "</s>"]


class LineBreakProcessor(hf.LlavaProcessor):
    """A processor that appends a line break to every text, as PaliGemma's does."""

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> Any:
        return super().__call__(images=images, text=[one + "\n" for one in text], **options)


def load(folder: str) -> VisionLanguageModel:
    return load_vlm(LoadOptions(folder, device="cpu"))


def add_end_token(vlm: VisionLanguageModel) -> None:
    tokenizer = vlm.processor.tokenizer
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )


def losses(vlm: VisionLanguageModel) -> list[tuple[float, bool]]:
    image = tiny_vision_models.random_image(1)
    return vlm.losses([vlm.prompt("Is it?", 1)] * len(ANSWERS), ANSWERS, [[image]] * len(ANSWERS))


def close(values: list[tuple[float, bool]]) -> list[tuple[Any, bool]]:
    return [(pytest.approx(loss, abs=1e-4), greedy) for loss, greedy in values]


@pytest.mark.parametrize("appended", ["end token", "line break", "both"])
def test_losses_are_of_the_answers_own_tokens(appended: str, vlm_checkpoint: Callable[[str], str]) -> None:
    """The causal model gives the same logits for the same tokens, so the plain processor's are expected."""
    expected = losses(load(vlm_checkpoint("llava")))
    vlm = load(vlm_checkpoint("llava"))
    if appended != "line break":
        add_end_token(vlm)
    if appended != "end token":
        vlm.processor.__class__ = LineBreakProcessor
    assert losses(vlm) == close(expected)


def test_losses_with_shared_prefixes_are_of_the_answers_own_tokens(
    vlm_checkpoint: Callable[[str], str],
) -> None:
    expected = losses(load(vlm_checkpoint("llava")))
    vlm = load(vlm_checkpoint("llava"))
    add_end_token(vlm)
    shared = self_check.load(vlm, find_attention_layout(vlm.model).decoder)
    assert shared.supports_sharing
    engine, image = ImageQuestionEngine(vlm, shared), tiny_vision_models.random_image(1)
    keys = engine.register_images([image])
    prompts = [ImagePrompt(vlm.prompt("Is it?", 1), keys, lambda: [image], answer) for answer in ANSWERS]
    assert engine.losses(prompts, batch_size=4) == close(expected)
