"""The package's side of one class: what its harness models and its probing give."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from numpy.typing import NDArray
from PIL import Image

from scripts.model_classes.families import Family
from truthgate_eval.gating.attention_layout import Site, find_attention_layout
from truthgate_eval.harness.lm_eval.model import GatedHF
from truthgate_eval.harness.lm_eval.probing import load_lm, tokenize
from truthgate_eval.harness.lmms_eval.model import GatedVLM
from truthgate_eval.harness.lmms_eval.probing import load_for_probing
from truthgate_eval.inference import self_check as text_self_check
from truthgate_eval.inference.shared_prefix import SharedPrefixModel
from truthgate_eval.probing.capture import capture
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample
from truthgate_eval.probing.image_capture import capture_with_images
from truthgate_eval.vision import self_check
from truthgate_eval.vision.loading import LoadOptions, load_vlm
from truthgate_eval.vision.shared_prefix import SharedPrefixVLM

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from helpers import tiny_models, tiny_vision_models
from helpers.lmms_eval_runs import generate
from helpers.plain_model import PlainModel, PlainText

NEW_TOKENS = 8
ANSWERS = ("yes", "no way")

Images = Sequence[Image.Image]


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        text: The question.
        images: Its images.
    """

    text: str
    images: Images = ()


def _questions(num_images: int) -> list[Question]:
    """Of different lengths, about images of different shapes; two about each."""
    images = [
        [tiny_vision_models.random_image(10 * n + k, (40 + 25 * n, 60)) for k in range(num_images)]
        for n in range(3)
    ]
    return [
        Question(f"Is there a {'very ' * n}big {thing}?", own)
        for n, own in enumerate(images)
        for thing in ("cat", "dog")
    ]


# What a document may have. Texts of a kind that a class refuses are left out, with the reason.
IMAGE_QUESTIONS = {"one picture": _questions(1), "two pictures": _questions(2), "no picture": _questions(0)}
TEXT_QUESTIONS = {"text": _questions(0)}


@dataclass(frozen=True)
class Subject:
    """The package's side of one class; every function loads the model anew.

    Attributes:
        questions: By kind.
        shape: Layers and heads.
        texts: Answers to questions, of the model with these arguments.
        logits: Logits of the answers' first tokens, [questions, vocabulary], as `texts`.
        activations: At a site, [answers, layers, features], with the questions' answers in order.
        sharing: Why no prefixes are shared, and why not for several images; None where they are.
        limits: What else is not supported.
    """

    questions: dict[str, list[Question]]
    shape: Callable[[], tuple[int, int]]
    texts: Callable[[Sequence[Question], dict[str, Any]], list[str]]
    logits: Callable[[Sequence[Question], dict[str, Any]], NDArray[np.float32]]
    activations: Callable[[Sequence[Question], Site], NDArray[np.float32]]
    sharing: Callable[[], tuple[str | None, str | None]]
    limits: Callable[[], list[str]]


def _examples(questions: Sequence[Question]) -> list[ProbeExample]:
    return [
        ProbeExample(
            question.text, f" {answer}", answer == ANSWERS[0], n, lambda own=question.images: list(own)
        )
        for n, question in enumerate(questions)
        for answer in ANSWERS
    ]


def image_subject(family: Family, folder: Path) -> tuple[Subject, PlainModel]:
    """A class that takes images, under lmms-eval; and the oracle."""
    path = tiny_vision_models.save(folder / "model", family.maker)
    plain = PlainModel.load(path)
    options: dict[str, Any] = {"device": "cpu"}
    if plain.processor.chat_template is None:
        options["chat_template"] = "plain"

    def shape() -> tuple[int, int]:
        return find_attention_layout(load_vlm(LoadOptions(path, **options)).model).shape

    def texts(questions: Sequence[Question], arguments: dict[str, Any]) -> list[str]:
        docs = [{"question": one.text, "visual": lambda _, own=one.images: list(own)} for one in questions]
        settings = {"max_new_tokens": NEW_TOKENS, "temperature": 0, "do_sample": False}
        return generate(GatedVLM(path, **options, **arguments), docs, settings)

    def logits(questions: Sequence[Question], arguments: dict[str, Any]) -> NDArray[np.float32]:
        vlm = GatedVLM(path, **options, **arguments).vlm
        prompts = [vlm.prompt(one.text, len(one.images)) for one in questions]
        rows = [
            vlm.next_token_logits(prompt, one.images) for prompt, one in zip(prompts, questions, strict=True)
        ]
        return torch.stack(rows).numpy()

    def activations(questions: Sequence[Question], site: Site) -> NDArray[np.float32]:
        has_chat = plain.processor.chat_template is not None
        vlm = load_for_probing("vlm", {"pretrained": path}, device="cpu", chat=has_chat)
        dataset = ProbeDataset(_examples(questions), {}, {"task": "made"}, bare_questions=has_chat)
        found = capture_with_images(vlm, dataset, site=site, batch_size=3)
        return found.reshape(*found.shape[:2], -1)

    def sharing() -> tuple[str | None, str | None]:
        vlm = load_vlm(LoadOptions(path, **options))
        shared = SharedPrefixVLM(vlm, find_attention_layout(vlm.model).decoder)
        reason = text_self_check.run_safely(lambda: self_check.find_sharing_mismatch(shared))
        if reason is not None:
            return reason, None
        multi = text_self_check.run_safely(
            lambda: self_check.find_multi_image_mismatch(shared.for_self_check())
        )
        return None, multi

    def limits() -> list[str]:
        notes = ["needs `chat_template=plain`"] if "chat_template" in options else []
        attributes = ("video_processor", "feature_extractor")
        unread = [
            what
            for what, name in zip(("videos", "audio"), attributes, strict=True)
            if getattr(plain.processor, name, None) is not None
        ]
        return [*notes, *([f"{' and '.join(unread)} not supported"] if unread else [])]

    return Subject(IMAGE_QUESTIONS, shape, texts, logits, activations, sharing, limits), plain


def text_subject(family: Family, folder: Path) -> tuple[Subject, PlainModel]:
    """A causal language model under lm-eval; and the oracle."""
    path = tiny_models.save_tiny_checkpoint(folder / "model", family.maker)
    plain = PlainText.load(path)

    def shape() -> tuple[int, int]:
        return find_attention_layout(plain.model).shape

    def texts(questions: Sequence[Question], arguments: dict[str, Any]) -> list[str]:
        model = GatedHF(path, device="cpu", **arguments)
        settings = {"max_gen_toks": NEW_TOKENS, "do_sample": False, "until": []}
        requests = [
            Instance("generate_until", {}, (one.text, dict(settings)), n) for n, one in enumerate(questions)
        ]
        return list(model.generate_until(requests))

    def logits(questions: Sequence[Question], arguments: dict[str, Any]) -> NDArray[np.float32]:
        model = GatedHF(path, device="cpu", **arguments)
        tokens = [torch.tensor([model.tok_encode(one.text)]) for one in questions]
        return torch.stack([model._model_call(one)[0, -1] for one in tokens]).numpy()

    def activations(questions: Sequence[Question], site: Site) -> NDArray[np.float32]:
        lm = load_lm("hf", {"pretrained": path}, batch_size=3, device="cpu")
        sequences = tokenize(lm, ProbeDataset(_examples(questions), {}, {"task": "made"}))
        found = capture(lm.model, sequences.tokens, site=site, batch_size=3)
        return found.reshape(*found.shape[:2], -1)

    def sharing() -> tuple[str | None, str | None]:
        shared = SharedPrefixModel(plain.model).for_self_check()
        return text_self_check.run_safely(lambda: text_self_check.find_mismatch(shared)), None

    return Subject(TEXT_QUESTIONS, shape, texts, logits, activations, sharing, list), plain
