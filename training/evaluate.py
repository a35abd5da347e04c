"""Accuracy of a model on questions about scenes that it was not trained on, with and without their images.

`python -m training.evaluate [MODEL] [--part test --scenes 190 --dtype bfloat16]` prints the table as JSON.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated

import typer
from PIL import Image

from training.training_data import TrainingExample, eval_set
from truthgate_eval.cli.console import print_line
from truthgate_eval.metrics import yes_no
from truthgate_eval.metrics.pope import SPLITS, parse_answer
from truthgate_eval.packaged.scenes import IMAGE_SIZE
from truthgate_eval.packaged.scenes_llava import SCENES_LLAVA
from truthgate_eval.vision.loading import LoadOptions, load_vlm
from truthgate_eval.vision.model import VisionLanguageModel

ImageCondition = Callable[[list[TrainingExample]], list[TrainingExample]]


def own_image(examples: list[TrainingExample]) -> list[TrainingExample]:
    """The questions with their own images."""
    return examples


def black_image(examples: list[TrainingExample]) -> list[TrainingExample]:
    """The questions with a black image."""
    black = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE))
    return [dataclasses.replace(example, image=black) for example in examples]


def other_image(examples: list[TrainingExample]) -> list[TrainingExample]:
    """The questions with the image of the next scene. All questions about one scene get the same image."""
    images = {id(example.image): example.image for example in examples}
    ids = list(images)
    following = dict(zip(ids, [*ids[1:], ids[0]], strict=True))
    return [dataclasses.replace(example, image=images[following[id(example.image)]]) for example in examples]


CONDITIONS: dict[str, ImageCondition] = {"own": own_image, "black": black_image, "other": other_image}


def evaluate(
    vlm: VisionLanguageModel, subset: str, scenes: int, *, tail: float = 1.0, batch_size: int = 64
) -> dict[str, dict[str, float]]:
    """Accuracy by split, with the images of each of `CONDITIONS`, and of a blind guess.

    Args:
        vlm: The model.
        subset: Subset of the scenes. The numbers of the scenes are far above those of training.
        scenes: Number of scenes. Each gives up to six questions of a split.
        tail: Exponent of the objects' frequencies; see `make_scene`.
        batch_size: Questions in a batch.

    Returns:
        {split: {condition: accuracy, "blind": accuracy, "n": number of questions}}.
    """
    known = {split: eval_set(subset, tail, 1000, split, first=30_000_000) for split in SPLITS}
    table: dict[str, dict[str, float]] = {}
    for split in SPLITS:
        examples = eval_set(subset, tail, scenes, split)
        table[split] = {
            name: _accuracy(vlm, condition(examples), batch_size) for name, condition in CONDITIONS.items()
        }
        table[split] |= {"blind": blind_guess(known[split], examples), "n": len(examples)}
    return table


def blind_guess(known: Sequence[TrainingExample], examples: Sequence[TrainingExample]) -> float:
    """Accuracy of the more frequent answer to each question, as counted on the questions of other scenes."""
    counts = Counter((example.question, example.answer) for example in known)
    guess = {
        question: max(("Yes", "No"), key=lambda answer: counts[question, answer])
        for question in {example.question for example in examples}
    }
    return yes_no.accuracy((example.answer, guess[example.question]) for example in examples)


def _accuracy(vlm: VisionLanguageModel, examples: Sequence[TrainingExample], batch_size: int) -> float:
    predictions: list[yes_no.Prediction] = []
    for begin in range(0, len(examples), batch_size):
        batch = examples[begin : begin + batch_size]
        prompts = [vlm.prompt(example.question, 1) for example in batch]
        images = [[example.image] for example in batch]
        texts = vlm.generate(prompts, images, max_new_tokens=4, do_sample=False)
        predictions += [
            parse_answer(text, example.answer.lower(), "official").prediction
            for example, text in zip(batch, texts, strict=True)
        ]
    return yes_no.accuracy(predictions)


def main(
    model: Annotated[str, typer.Argument(help="Name or folder of the model.")] = SCENES_LLAVA,
    subset: Annotated[str, typer.Option("--part", help="Subset of the scenes.")] = "test",
    scenes: Annotated[int, typer.Option(help="Number of scenes.", min=1)] = 190,
    dtype: Annotated[str, typer.Option(help="Data type of the weights.")] = "bfloat16",
) -> None:
    """Print a model's accuracy on questions about scenes as JSON."""
    print_line(json.dumps(evaluate(load_vlm(LoadOptions(model, dtype=dtype)), subset, scenes), indent=1))


if __name__ == "__main__":
    typer.run(main)
