"""What a child answers about scenes that it never saw, with their pictures and without.

`python -m training.evaluate [MODEL] [--part test --scenes 190 --dtype bfloat16]` prints the table as JSON.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence

import typer
from PIL import Image

from training.training_data import TrainingExample, eval_set
from truthgate_eval.cli.console import print_line
from truthgate_eval.metrics.pope import SPLITS, parse_answer
from truthgate_eval.packaged.scenes import SIZE
from truthgate_eval.packaged.scenes_llava import SCENES_LLAVA
from truthgate_eval.vision.loading import LoadOptions, load_vlm
from truthgate_eval.vision.model import VisionLanguageModel

Pictured = Callable[[list[TrainingExample]], list[TrainingExample]]


def as_they_are(polls: list[TrainingExample]) -> list[TrainingExample]:
    """The polls with their own pictures."""
    return polls


def black(polls: list[TrainingExample]) -> list[TrainingExample]:
    """The same polls about a black picture."""
    nothing = Image.new("RGB", (SIZE, SIZE))
    return [dataclasses.replace(poll, picture=nothing) for poll in polls]


def of_others(polls: list[TrainingExample]) -> list[TrainingExample]:
    """The same polls about the next scene's picture; questions about one scene stand together."""
    pictures = list(dict.fromkeys(id(poll.image) for poll in polls))
    by_id = {id(poll.image): poll.image for poll in polls}
    following = dict(zip(pictures, [*pictures[1:], pictures[0]], strict=True))
    return [dataclasses.replace(poll, picture=by_id[following[id(poll.image)]]) for poll in polls]


CONDITIONS: dict[str, Pictured] = {"own": as_they_are, "black": black, "other": of_others}


def evaluate(
    vlm: VisionLanguageModel, part: str, scenes: int, *, tail: float = 1.0, batch: int = 64
) -> dict[str, dict[str, float]]:
    """Accuracy by split, for each condition of `CONDITIONS`, and of a blind guess.

    Args:
        vlm: The child.
        part: Scenes that it was taught with; those asked about come far behind the taught ones.
        scenes: How many pictures; each gives up to six polls to a split.
        tail: How fast an object's frequency falls with its rank.
        batch: Polls a batch.

    Returns:
        {split: {condition: share of right answers, "blind": ..., "n": polls}}.
    """
    known = {split: eval_set(part, tail, 1000, split, first=30_000_000) for split in SPLITS}
    table: dict[str, dict[str, float]] = {}
    for split in SPLITS:
        polls = eval_set(part, tail, scenes, split)
        table[split] = {name: _right(vlm, shown(polls), batch) for name, shown in CONDITIONS.items()}
        table[split] |= {"blind": blind_guess(known[split], polls), "n": len(polls)}
    return table


def blind_guess(known: Sequence[TrainingExample], polls: Sequence[TrainingExample]) -> float:
    """Accuracy of the likelier answer to each question, as counted on other scenes' polls."""
    counts = Counter((poll.question, poll.answer) for poll in known)
    guess = {
        question: max(("Yes", "No"), key=lambda answer: counts[question, answer])
        for question in {poll.question for poll in polls}
    }
    return sum(guess[poll.question] == poll.answer for poll in polls) / len(polls)


def _right(vlm: VisionLanguageModel, polls: Sequence[TrainingExample], batch: int) -> float:
    right = 0
    for begin in range(0, len(polls), batch):
        some = polls[begin : begin + batch]
        prompts = [vlm.prompt(poll.question, 1) for poll in some]
        answers = vlm.generate(prompts, [[poll.image] for poll in some], max_new_tokens=4, do_sample=False)
        for poll, answer in zip(some, answers, strict=True):
            reading = parse_answer(answer, poll.answer.lower(), "official")
            right += reading.parsed == reading.gold
    return right / len(polls)


def main(
    model: str = typer.Argument(SCENES_LLAVA), part: str = "test", scenes: int = 190, dtype: str = "bfloat16"
) -> None:
    """Print the table of a child."""
    print_line(json.dumps(evaluate(load_vlm(LoadOptions(model, dtype=dtype)), part, scenes), indent=1))


if __name__ == "__main__":
    typer.run(main)
