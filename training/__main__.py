"""`python -m training FOLDER`: train a child on drawn scenes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from training.train import train
from training.training_data import TrainingConfig
from truthgate_eval.cli.console import print_line, progress_bar
from truthgate_eval.packaged.scenes import PARTS
from truthgate_eval.packaged.scenes_llava import assemble


def main(
    folder: Annotated[Path, typer.Argument(help="Where weights, checkpoints and the run's state go.")],
    part: Annotated[str, typer.Option(help="Scenes: train, or sibling for a second child.")] = "train",
    tail: Annotated[float, typer.Option(help="How fast an object's frequency falls with its rank.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the weights' start and of the choice of questions.")] = 0,
    steps: Annotated[int, typer.Option(help="Steps of 16 lessons.", min=1)] = 1300,
) -> None:
    """Train a LLaVA on SmolLM2-135M-Instruct to see drawn scenes; about 50 minutes on two cores.

    Writes FOLDER/weights (what was trained) and FOLDER/model (an ordinary checkpoint), and the same in
    FOLDER/early for the first state that answers 85 % of its exam. A stopped run goes on by the same command.
    """
    if part not in PARTS:
        raise typer.BadParameter(f"{part!r} is none of {', '.join(PARTS)}")
    folder.mkdir(parents=True, exist_ok=True)
    course = TrainingConfig(part=part, tail=tail, seed=seed, batch=16, steps=steps)
    _same_course(folder / "course.json", course)
    began = time.monotonic()
    with progress_bar() as progress:
        bars: dict[str, int] = {}

        def report(stage: str, step: int, total: int, note: str) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=total)
            progress.update(bars[stage], completed=step, description=f"{stage} ({note})")
            if step % 50 == 0:
                with (folder / "log.txt").open("a") as log:
                    log.write(f"{time.monotonic() - began:.0f}s {stage} {step}/{total} {note}\n")

        train(course, folder, report)
    for kind in ("weights", "early"):
        if (folder / kind).is_dir():
            model = folder / ("model" if kind == "weights" else "early_model")
            assemble(folder / kind, model)
            print_line(f"{model}")


def _same_course(file: Path, course: TrainingConfig) -> None:
    """A stopped run must go on with the settings that it was begun with."""
    settings = vars(course)
    if file.is_file() and json.loads(file.read_text()) != settings:
        raise typer.BadParameter(f"{file.parent} was begun with {file.read_text()}: take another folder")
    file.write_text(json.dumps(settings))


if __name__ == "__main__":
    typer.run(main)
