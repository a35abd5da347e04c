"""What a training needs of its data, and the data of scenes: captions, and yes/no questions about them."""

from __future__ import annotations

import abc
import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from truthgate_eval.data.store import Row
from truthgate_eval.packaged.scenes import OBJECTS, make_scene
from truthgate_eval.packaged.scenes_dataset import make_questions

CAPTION_PROMPT = "Describe the image."
QUESTION_ENDING = "\nAnswer the question using a single word or phrase."  # as in the tasks
# Questions are made for this many scenes at a time, since POPE's rule counts objects over a set of images.
_CHUNK = 512
EVAL_SCENES = 40
# Number of the vision tower's first scene. The whole model's begin at 0, and evaluation data at 10 million.
_FIRST_TOWER_SCENE = 20_000_000


@dataclass(frozen=True, eq=False)
class TrainingExample:
    """An image, a question about it, and the answer to learn."""

    image: Image.Image
    question: str
    answer: str


@dataclass(frozen=True, eq=False)
class LabeledImage:
    """An image and the names of what is on it, for the vision tower's own training."""

    image: Image.Image
    names: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(abc.ABC):
    """The data and the length of a training run.

    Attributes:
        data: Name of the data.
        seed: Of the weights and of the choice of examples.
        batch_size: Examples in a step.
        steps: Number of steps of the whole model.
        tower_steps: Number of steps of the vision tower before.
        early_accuracy: Accuracy on `eval_examples` at which a state is saved as the early one.
        near_early: Accuracy above which the early state is a few steps away.
        align_steps: Number of steps that align the projector with the names' word embeddings.
        vision_learning_rate: Of tower and projector, once the whole model is trained.
    """

    data: str
    seed: int
    batch_size: int
    steps: int
    tower_steps: int
    early_accuracy: float
    near_early: float = 0.6
    align_steps: int = 0
    vision_learning_rate: float = 6e-4

    @property
    @abc.abstractmethod
    def labels(self) -> tuple[str, ...]:
        """The names that `LabeledImage.names` are taken from."""

    @abc.abstractmethod
    def tower_batch(self, step: int, size: int) -> list[LabeledImage]:
        """The images of one step of the vision tower's training."""

    @abc.abstractmethod
    def batches(self) -> Callable[[int], list[TrainingExample]]:
        """A function that returns the examples of a step of the whole model."""

    @abc.abstractmethod
    def eval_examples(self) -> list[TrainingExample]:
        """Yes/no questions about images that are not trained on, which measure the progress."""


@dataclass(frozen=True, kw_only=True)
class ScenesTraining(TrainingConfig):
    """A training on drawn scenes.

    Attributes:
        subset: Subset of the scenes: `train`, or `sibling` for a second model.
        tail: Exponent of the objects' frequencies; see `make_scene`.
    """

    subset: str = "train"
    tail: float = 1.0
    data: str = "scenes"
    tower_steps: int = 2000
    early_accuracy: float = 0.85

    @property
    def labels(self) -> tuple[str, ...]:
        """See `TrainingConfig.labels`."""
        return tuple(OBJECTS)

    def tower_batch(self, step: int, size: int) -> list[LabeledImage]:
        """See `TrainingConfig.tower_batch`."""
        first = _FIRST_TOWER_SCENE + step * size
        scenes = [make_scene(self.subset, first + n, tail=self.tail) for n in range(size)]
        return [LabeledImage(scene.image, frozenset(scene.objects)) for scene in scenes]

    def eval_examples(self) -> list[TrainingExample]:
        """See `TrainingConfig.eval_examples`."""
        return eval_set(self.subset, self.tail, scenes=EVAL_SCENES)

    def question_share(self, step: int) -> float:
        """Share of questions among the examples of a step; the others are captions."""
        return 1 / 5 if step < self.steps / 2 else 7 / 10

    def batches(self) -> Callable[[int], list[TrainingExample]]:
        """See `TrainingConfig.batches`. Each example is about a scene of its own."""
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
