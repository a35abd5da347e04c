"""Prompts and questions that share prefixes in every way that a plan must handle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from helpers import tiny_vision_models as factories_vlm
from truthgate_eval.vision.question_engine import ImagePrompt, ImageQuestionEngine


def prompts() -> list[list[int]]:
    """Prompts after one instruction, in related pairs, alone, equal, and one a prefix of another."""
    tokens = torch.randint(3, 90, (700,), generator=torch.Generator().manual_seed(5)).tolist()
    instruction, others = tokens[:60], tokens[60:]
    instructed = [instruction + others[7 * i : 7 * i + 3 + i % 5] for i in range(70)]
    return [*instructed, instructed[3], *(others[i : i + 4] for i in range(6)), [5], [5, 6], [5, 6, 7]]


def questions() -> list[tuple[str, list[Image.Image]]]:
    """Several about each image, also after a long text; about two images, about none; some twice."""
    images = [[factories_vlm.random_image(n, (30 + 25 * n, 90 - 10 * n))] for n in range(5)]
    images += [[images[0][0], images[1][0]], [images[1][0], images[0][0]], []]
    texts = [
        f"Is there a {'very ' * (n % 3)}big {thing}?" for n, thing in enumerate("cat dog cup car".split())
    ]
    found = [(text, own) for own in images for text in texts]
    long = "Look at it, and then answer. " * 12
    found += [(f"{long}{text}", own) for own in images[:2] for text in texts]
    return [*found, found[0], (found[1][0], [found[1][1][0].copy()])]


def image_prompts(engine: ImageQuestionEngine, answers: Sequence[str] = ("",)) -> list[ImagePrompt]:
    """The questions for an engine, each once with every answer to score."""
    return [
        ImagePrompt(
            engine.vlm.prompt(text, len(images)),
            engine.register_images(images),
            lambda images=images: images,
            answer,
        )
        for text, images in questions()
        for answer in answers
    ]
