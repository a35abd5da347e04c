"""Training data from easy-VQA: all questions about pictures that are neither probed nor evaluated."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from PIL import Image

from training.training_data import (
    QUESTION_ENDING,
    LabeledImage,
    TrainingConfig,
    TrainingExample,
)
from truthgate_eval.data.easy_vqa import FIRST_PROBE_IMAGE, questions
from truthgate_eval.data.images import open_image
from truthgate_eval.data.store import Row
from truthgate_eval.packaged.scenes import IMAGE_SIZE

SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
# Pictures from this number on measure the training's progress and are not trained on.
FIRST_EVAL_IMAGE = FIRST_PROBE_IMAGE - 100
_NEGATIONS = frozenset({"no", "not"})


@dataclass(frozen=True)
class EasyVqaTraining(TrainingConfig):
    """A training on easy-VQA's training pictures below `FIRST_PROBE_IMAGE`, with all their questions."""

    data: str = "easy_vqa"
    tower_steps: int = 1000
    align_steps: int = 600
    # A rate that suits a projector without alignment undoes the alignment.
    vision_learning_rate: float = 1e-5
    early_accuracy: float = 0.81
    # Guessing from the question alone is learnt within a few steps.
    near_early: float = 0.0

    @property
    def labels(self) -> tuple[str, ...]:
        """See `TrainingConfig.labels`."""
        return (*SHAPES, *COLORS)

    def tower_batch(self, step: int, size: int) -> list[LabeledImage]:
        """See `TrainingConfig.tower_batch`."""
        labeled = self._labeled
        rng = random.Random(f"{self.seed} tower {step}")
        return [LabeledImage(_picture(path), names) for path, names in rng.sample(labeled, size)]

    def batches(self) -> Callable[[int], list[TrainingExample]]:
        """See `TrainingConfig.batches`. Every question comes once before any comes again."""
        rows = self._rows
        order: dict[int, list[int]] = {}

        def row(number: int) -> Row:
            epoch, place = divmod(number, len(rows))
            if epoch not in order:
                order.clear()
                order[epoch] = random.Random(f"{self.seed} {epoch}").sample(range(len(rows)), len(rows))
            return rows[order[epoch][place]]

        return lambda step: [
            _example(row(number)) for number in range(step * self.batch_size, (step + 1) * self.batch_size)
        ]

    def eval_examples(self) -> list[TrainingExample]:
        """See `TrainingConfig.eval_examples`."""
        rows = [row for row in questions("train") if _number(row) >= FIRST_EVAL_IMAGE]
        return [_example(row) for row in rows]

    @cached_property
    def _rows(self) -> list[Row]:
        return [row for row in questions("train", yes_no=False) if _number(row) < FIRST_EVAL_IMAGE]

    @cached_property
    def _labeled(self) -> list[tuple[str, frozenset[str]]]:
        """Path and labels of the pictures whose questions tell both shape and colour."""
        found: dict[str, set[str]] = defaultdict(set)
        for row in self._rows:
            found[row["image_path"]] |= names_told(row["question"], row["answer"])
        return [
            (path, frozenset(names))
            for path, names in found.items()
            if names.intersection(SHAPES) and names.intersection(COLORS)
        ]


def names_told(question: str, answer: str) -> set[str]:
    """The shape and the colour that a question and its right answer tell.

    Example:
        >>> names_told("is there not a red shape?", "no"), names_told("is a circle present?", "no")
        ({'red'}, set())
    """
    words = set(question.strip("?").split())
    if answer in ("yes", "no"):
        affirmed = (answer == "yes") != bool(words & _NEGATIONS)
        words = words if affirmed else set()
    else:
        words = words | {answer}
    return words.intersection((*SHAPES, *COLORS))


def _example(row: Row) -> TrainingExample:
    return TrainingExample(
        _picture(row["image_path"]), row["question"] + QUESTION_ENDING, row["answer"].capitalize()
    )


def _picture(path: str) -> Image.Image:
    image = open_image(path)
    return image if image.size == (IMAGE_SIZE, IMAGE_SIZE) else image.resize((IMAGE_SIZE, IMAGE_SIZE))


def _number(row: Row) -> int:
    return int(row["image"].rsplit("-", 1)[1])
