"""Prompts and questions that share prefixes in every way that a plan must handle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image

from helpers import tiny_vision_models as factories_vlm
from truthgate_eval.vision.question_engine import ImagePrompt, ImageQuestionEngine


def prompts() -> list[list[int]]:
    """Prompts behind one instruction, in related pairs, alone, equal, and one inside another."""
    draw = torch.randint(3, 90, (700,), generator=torch.Generator().manual_seed(5)).tolist()
    instruction, rest = draw[:60], draw[60:]
    behind = [instruction + rest[7 * i : 7 * i + 3 + i % 5] for i in range(70)]
    return [*behind, behind[3], *(rest[i : i + 4] for i in range(6)), [5], [5, 6], [5, 6, 7]]


def questions() -> list[tuple[str, list[Image.Image]]]:
    """Several about each picture, also behind a long text; about two, about none; some asked twice."""
    shown = [[factories_vlm.picture(n, (30 + 25 * n, 90 - 10 * n))] for n in range(5)]
    shown += [[shown[0][0], shown[1][0]], [shown[1][0], shown[0][0]], []]
    texts = [
        f"Is there a {'very ' * (n % 3)}big {thing}?" for n, thing in enumerate("cat dog cup car".split())
    ]
    found = [(text, pictures) for pictures in shown for text in texts]
    long = "Look at it, and then answer. " * 12
    found += [(f"{long}{text}", pictures) for pictures in shown[:2] for text in texts]
    return [*found, found[0], (found[1][0], [found[1][1][0].copy()])]


def asked(shared: ImageQuestionEngine, answers: Sequence[str] = ("",)) -> list[ImagePrompt]:
    return [
        ImagePrompt(
            shared.vlm.prompt(text, len(shown)),
            shared.register_images(shown),
            lambda shown=shown: shown,
            answer,
        )
        for text, shown in questions()
        for answer in answers
    ]
