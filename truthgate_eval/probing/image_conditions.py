r"""Which image a vision-language model gets with an answer, and how prompt and answer are written.

The conditions (`docs/method.md#probing-data`): the document's own image, none, or a black one, which has
no content. The authors' plain format is `<image>\n{question}\nASSISTANT: {answer}`. A text task's
`Context: ... Answer:` follows the image unchanged. The other format is the model's own chat template.
"""

from __future__ import annotations

import dataclasses

from PIL import Image

from truthgate_eval.errors import DataError
from truthgate_eval.probing.config import BLACK, DOCUMENT, NONE, ImageCondition, check_condition
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample
from truthgate_eval.vision.model import VisionLanguageModel

__all__ = ["BLACK", "DOCUMENT", "NONE", "apply_image_condition", "write_prompt", "write_sequence"]

_BLACK_SIZE = (336, 336)  # as in the released code
_PLAIN_TURN = "\nASSISTANT:"


def apply_image_condition(dataset: ProbeDataset, image: ImageCondition) -> ProbeDataset:
    """The same answers, each with the images of a condition.

    Args:
        dataset: With images of its own for `document`.
        image: `document`, `none` or `black`.

    Raises:
        TaskError: There is no such condition.
        DataError: `document`, and an answer has no images.
    """
    check_condition(image)
    examples = dataset.examples
    if image == DOCUMENT and any(example.load_images is None for example in examples):
        raise DataError(
            f"the task {dataset.settings.get('task')} has no images: say --image none (text alone) or "
            "--image black (a black image)"
        )
    if image != DOCUMENT:
        load_images = list if image == NONE else _black_image
        examples = [dataclasses.replace(example, load_images=load_images) for example in examples]
    return dataclasses.replace(dataset, examples=examples, settings={**dataset.settings, "image": image})


def write_sequence(
    vlm: VisionLanguageModel, example: ProbeExample, num_images: int, *, bare_question: bool
) -> tuple[str, str]:
    """A whole sequence as two texts: the images' placeholders with the context, and the answer.

    Args:
        vlm: Its chat template is used, which may be the plain one.
        example: The answer and its context.
        num_images: How many images it has.
        bare_question: As in `ProbeDataset`.
    """
    prompt = vlm.prompt(example.context, num_images)
    if vlm.chat.template is None:
        if not bare_question and not vlm.supports_suffix:
            return prompt, example.answer
        prompt += _PLAIN_TURN if bare_question else ""
    # A processor that takes a suffix puts a line break before it.
    space = "" if prompt[-1:].isspace() or vlm.supports_suffix else " "
    return prompt, space + example.answer.strip()


def write_prompt(
    vlm: VisionLanguageModel, example: ProbeExample, num_images: int, *, bare_question: bool
) -> str:
    """A whole sequence as one text; see `write_sequence`."""
    return "".join(write_sequence(vlm, example, num_images, bare_question=bare_question))


def _black_image() -> list[Image.Image]:
    return [Image.new("RGB", _BLACK_SIZE)]
