"""What a child is taught: captions of scenes, and polls about them, drawn anew for every step."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from truthgate_eval.packaged.scenes import make_scene
from truthgate_eval.packaged.scenes_dataset import make_questions

CAPTION = "Describe the image."
SHORT = "\nAnswer the question using a single word or phrase."  # as the tasks end a question
_CHUNK = 512  # scenes that a poll's statistics are taken over


@dataclass(frozen=True, eq=False)
class TrainingExample:
    """A picture, a question and the answer to learn."""

    image: Image.Image
    question: str
    answer: str


@dataclass(frozen=True)
class TrainingConfig:
    """The lessons of one child.

    Attributes:
        part: Scenes that it draws from: `train`, or `sibling` for another child.
        tail: How fast an object's frequency falls with its rank.
        seed: Of the choice of questions.
        batch: Lessons a step.
        steps: How many steps there are.
    """

    part: str
    tail: float
    seed: int
    batch: int
    steps: int

    def share_of_polls(self, step: int) -> float:
        """Polls among the lessons of a step: one of five in the first half, then seven of ten."""
        return 1 / 5 if step < self.steps / 2 else 7 / 10

    def batches(self) -> Callable[[int], list[TrainingExample]]:
        """The lessons of a step, by its number; scenes never come twice."""
        kept: dict[int, list[TrainingExample]] = {}

        def of(step: int) -> list[TrainingExample]:
            found = []
            for number in range(step * self.batch, (step + 1) * self.batch):
                chunk = number // _CHUNK
                if chunk not in kept:
                    kept.clear()
                    kept[chunk] = self._chunk(chunk)
                found.append(kept[chunk][number % _CHUNK])
            return found

        return of

    def _chunk(self, chunk: int) -> list[TrainingExample]:
        numbers = range(chunk * _CHUNK, (chunk + 1) * _CHUNK)
        scenes = [make_scene(self.part, number, tail=self.tail) for number in numbers]
        asked: dict[str, list[dict[str, str]]] = {}
        for rows in make_questions(scenes).values():
            for row in rows:
                asked.setdefault(row["image"], []).append(row)
        lessons = []
        for number, scene in zip(numbers, scenes, strict=True):
            draw = random.Random(f"{self.seed} {number}")
            if draw.random() < self.share_of_polls(number // self.batch):
                row = draw.choice(asked[scene.name])
                lessons.append(
                    TrainingExample(scene.image, row["question"] + SHORT, row["answer"].capitalize())
                )
            else:
                lessons.append(TrainingExample(scene.image, CAPTION, scene.caption))
        return lessons


def eval_set(
    part: str, tail: float, scenes: int, split: str = "random", *, first: int = 10_000_000
) -> list[TrainingExample]:
    """Polls about scenes that no lesson shows: those from number `first` on, far behind the last lesson."""
    drawn = [make_scene(part, number, tail=tail) for number in range(first, first + scenes)]
    pictures = {scene.name: scene.image for scene in drawn}
    return [
        TrainingExample(pictures[row["image"]], row["question"] + SHORT, row["answer"].capitalize())
        for row in make_questions(drawn)[split]
    ]
