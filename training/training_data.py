"""Training and evaluation data: captions of scenes, and yes/no questions about them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from truthgate_eval.data.store import Row
from truthgate_eval.packaged.scenes import make_scene
from truthgate_eval.packaged.scenes_dataset import make_questions

CAPTION_PROMPT = "Describe the image."
QUESTION_ENDING = "\nAnswer the question using a single word or phrase."  # as in the tasks
# Questions are made for this many scenes at a time, since POPE's rule counts objects over a set of images.
_CHUNK = 512


@dataclass(frozen=True, eq=False)
class TrainingExample:
    """An image, a question about it, and the answer to learn."""

    image: Image.Image
    question: str
    answer: str


@dataclass(frozen=True)
class TrainingConfig:
    """The data and the length of a training run.

    Attributes:
        subset: Subset of the scenes: `train`, or `sibling` for a second model.
        tail: Exponent of the objects' frequencies; see `make_scene`.
        seed: Of the weights and of the choice of questions.
        batch_size: Examples in a step.
        steps: Number of steps.
    """

    subset: str
    tail: float
    seed: int
    batch_size: int
    steps: int

    def question_share(self, step: int) -> float:
        """Share of questions among the examples of a step; the others are captions."""
        return 1 / 5 if step < self.steps / 2 else 7 / 10

    def batches(self) -> Callable[[int], list[TrainingExample]]:
        """A function that returns the examples of a step, each about a scene of its own."""
        cache: dict[int, list[TrainingExample]] = {}

        def batch(step: int) -> list[TrainingExample]:
            examples = []
            for number in range(step * self.batch_size, (step + 1) * self.batch_size):
                chunk = number // _CHUNK
                if chunk not in cache:
                    cache.clear()
                    cache[chunk] = self._chunk(chunk)
                examples.append(cache[chunk][number % _CHUNK])
            return examples

        return batch

    def _chunk(self, chunk: int) -> list[TrainingExample]:
        numbers = range(chunk * _CHUNK, (chunk + 1) * _CHUNK)
        scenes = [make_scene(self.subset, number, tail=self.tail) for number in numbers]
        questions: dict[str, list[Row]] = {}
        for rows in make_questions(scenes).values():
            for row in rows:
                questions.setdefault(row["image"], []).append(row)
        examples = []
        for number, scene in zip(numbers, scenes, strict=True):
            rng = random.Random(f"{self.seed} {number}")
            if rng.random() < self.question_share(number // self.batch_size):
                examples.append(_question_example(scene.image, rng.choice(questions[scene.name])))
            else:
                examples.append(TrainingExample(scene.image, CAPTION_PROMPT, scene.caption))
        return examples


def eval_set(
    subset: str, tail: float, scenes: int, split: str = "random", *, first: int = 10_000_000
) -> list[TrainingExample]:
    """Yes/no questions about scenes that no training run reaches.

    Args:
        subset: Subset of the scenes.
        tail: Exponent of the objects' frequencies; see `make_scene`.
        scenes: Number of scenes. Each gives up to six questions.
        split: `random`, `popular` or `adversarial`.
        first: Number of the first scene.
    """
    drawn = [make_scene(subset, number, tail=tail) for number in range(first, first + scenes)]
    images = {scene.name: scene.image for scene in drawn}
    return [_question_example(images[row["image"]], row) for row in make_questions(drawn)[split]]


def _question_example(image: Image.Image, row: Row) -> TrainingExample:
    return TrainingExample(image, row["question"] + QUESTION_ENDING, row["answer"].capitalize())
