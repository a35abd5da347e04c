"""The contrast of lmms-eval's losses with those without the documents' images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from PIL import Image

from truthgate_eval.errors import TaskError
from truthgate_eval.harness.contrast import Contrast
from truthgate_eval.harness.lmms_eval.requests import ImageRequest, flatten
from truthgate_eval.vision.chat_template import PLACEHOLDER

Losses = list[tuple[float, bool]]


def contrasted_losses(
    contrast: Contrast, questions: list[ImageRequest], score: Callable[[list[ImageRequest]], Losses]
) -> Losses:
    """The contrasted loss of each answer, and whether it is the greedy answer with the image.

    Args:
        contrast: The strength, and the image to contrast with.
        questions: Questions with their answers.
        score: Gives the losses of questions.

    Raises:
        TaskError: A task's documents have no image to take away.
    """
    for first in {question.task: question for question in reversed(questions)}.values():
        if not first.load_images():
            raise TaskError(f"contrast={contrast.alpha:g}: {first.where} has no picture to take away")
    changed = [_without_image(question, contrast) for question in questions]
    found = score([*questions, *changed])
    return [
        (contrast.combine(loss, without), is_greedy)
        for (loss, is_greedy), (without, _) in zip(
            found[: len(questions)], found[len(questions) :], strict=True
        )
    ]


def describe(contrast: Contrast | None) -> dict[str, Any] | None:
    """What a results file says of a contrast with images; None for none."""
    return None if contrast is None else dataclasses.asdict(contrast)


def _without_image(question: ImageRequest, contrast: Contrast) -> ImageRequest:
    doc_to_visual = question.doc_to_visual
    if contrast.image == "none" or doc_to_visual is None:
        text = question.text
        # As `VisionLanguageModel.prompt` reads it: once for each image it is where they go, else a text.
        if PLACEHOLDER in text and text.count(PLACEHOLDER) == len(question.load_images()):
            text = text.replace(PLACEHOLDER, "")
        return dataclasses.replace(question, text=text, doc_to_visual=None)

    def black_images(document: Any) -> list[Any]:
        return [_black(visual) for visual in flatten(doc_to_visual(document))]

    return dataclasses.replace(question, doc_to_visual=black_images)


def _black(visual: Any) -> Any:
    """A black image of the same size; what is no image is refused where images are loaded."""
    return Image.new("RGB", visual.size) if isinstance(visual, Image.Image) else visual
