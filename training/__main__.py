"""`python -m training FOLDER`: train a model like smollm2-135m-scenes."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import TaskID

from training.train import train
from training.training_data import TrainingConfig
from truthgate_eval.cli.console import print_line, progress_bar
from truthgate_eval.packaged.scenes import SUBSETS
from truthgate_eval.packaged.scenes_llava import assemble


def main(
    folder: Annotated[Path, typer.Argument(help="Folder for weights, checkpoints and the state of the run.")],
    subset: Annotated[
        str, typer.Option("--part", help="Subset of the scenes: train, or sibling for a second model.")
    ] = "train",
    tail: Annotated[float, typer.Option(help="How fast an object's frequency falls with its rank.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the choice of questions.")] = 0,
    steps: Annotated[int, typer.Option(help="Number of steps, each of 16 examples.", min=1)] = 1300,
) -> None:
    """Train a LLaVA on SmolLM2-135M-Instruct with scenes; about 50 minutes on two cores.

    Writes the trained weights to FOLDER/weights and an ordinary checkpoint to FOLDER/model. The first state
    with an accuracy of 85 % goes to FOLDER/early and FOLDER/early_model.

    The same command continues an interrupted run.
    """
    if subset not in SUBSETS:
        raise typer.BadParameter(f"{subset!r} is none of {', '.join(SUBSETS)}")
    folder.mkdir(parents=True, exist_ok=True)
    config = TrainingConfig(subset=subset, tail=tail, seed=seed, batch_size=16, steps=steps)
    _check_config(folder / "config.json", config)
    began = time.monotonic()
    with progress_bar() as progress:
        bars: dict[str, TaskID] = {}

        def report(stage: str, step: int, total: int, note: str) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=total)
            progress.update(bars[stage], completed=step, description=f"{stage} ({note})")
            if step % 50 == 0:
                with (folder / "log.txt").open("a") as log:
                    log.write(f"{time.monotonic() - began:.0f}s {stage} {step}/{total} {note}\n")

        train(config, folder, report)
    for weights, model in (("weights", "model"), ("early", "early_model")):
        if (folder / weights).is_dir():
            assemble(folder / weights, folder / model)
            print_line(str(folder / model))


def _check_config(file: Path, config: TrainingConfig) -> None:
    """Save the configuration, or refuse to continue a run that has another one."""
    settings = dataclasses.asdict(config)
    if file.is_file() and json.loads(file.read_text()) != settings:
        raise typer.BadParameter(f"{file.parent} has a run with {file.read_text()}: choose another folder")
    file.write_text(json.dumps(settings))


if __name__ == "__main__":
    typer.run(main)
