r"""Which picture a vision-language model is shown with an answer, and how the two are written together.

METHOD.md, "Probing data": the document's own picture, none, or a black one that says nothing. The
authors' plain format is `<image>\n{question}\nASSISTANT: {answer}`; a text task's `Context: ... Answer:`
stands after the picture as it is. The other format is the model's own chat template.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from PIL import Image

from truthgate_eval.errors import DataError, TaskError
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample
from truthgate_eval.vision.model import VisionLanguageModel

DOCUMENT, NONE, BLACK = "document", "none", "black"
CONDITIONS = (DOCUMENT, NONE, BLACK)
_BLACK_SIZE = (336, 336)  # the released code's
_PLAIN_TURN = "\nASSISTANT:"


def check_condition(image: str) -> None:
    """Raise `TaskError` unless `image` is a condition that exists."""
    if image not in CONDITIONS:
        raise TaskError(f"--image {image} is none of {', '.join(CONDITIONS)}")


def apply_image_condition(answers: ProbeDataset, image: str) -> ProbeDataset:
    """The same answers, each with the pictures of a condition.

    Args:
        answers: With pictures of their own for `document`.
        image: `document`, `none` or `black`.

    Raises:
        TaskError: There is no such condition.
        DataError: `document`, and an answer has no pictures.
    """
    check_condition(image)
    if image == DOCUMENT and any(item.load_images is None for item in answers.examples):
        raise DataError(
            f"the task {answers.settings.get('task')} has no pictures: say --image none (text alone) or "
            "--image black (a picture that says nothing)"
        )
    items = answers.examples
    if image != DOCUMENT:
        pictures = list if image == NONE else _black
        items = [dataclasses.replace(item, pictures=pictures) for item in items]
    return dataclasses.replace(answers, items=items, settings={**answers.settings, "image": image})


def write_prompt(vlm: VisionLanguageModel, item: ProbeExample, pictures: int, *, bare: bool) -> str:
    """A whole sequence: the pictures' placeholders, the context and the answer.

    Args:
        vlm: Its chat format is used, which may be the plain one.
        item: The answer and its context.
        pictures: How many pictures it has.
        bare: As in `Answers`.
    """
    prompt = vlm.prompt(item.context, pictures)
    if vlm.chat.template is None:
        if not bare:
            return prompt + item.answer
        prompt += _PLAIN_TURN
    between = "" if prompt[-1:].isspace() else " "
    return prompt + between + item.answer.strip()


def _black() -> list[Any]:
    return [Image.new("RGB", _BLACK_SIZE)]
