"""`python -m training FOLDER [--data easy_vqa]`: train a child of the packaged model."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.progress import TaskID

from training.easy_vqa import EasyVqaTraining
from training.halueval import HaluEvalTraining, train_text
from training.train import train
from training.training_data import ScenesTraining, TrainingConfig
from truthgate_eval.cli.console import print_line, progress_bar
from truthgate_eval.files import replace_folder
from truthgate_eval.packaged.scenes import SUBSETS
from truthgate_eval.packaged.scenes_llava import assemble

Data = Literal["scenes", "easy_vqa", "halueval"]
_STEPS: dict[Data, int] = {"scenes": 1300, "easy_vqa": 400, "halueval": 40}
Config = TrainingConfig | HaluEvalTraining


def main(
    folder: Annotated[Path, typer.Argument(help="Folder for weights, checkpoints and the state of the run.")],
    data: Annotated[Data, typer.Option(help="What to train on.")] = "scenes",
    subset: Annotated[
        str, typer.Option("--part", help="Subset of the scenes: train, or sibling for a second model.")
    ] = "train",
    tail: Annotated[float, typer.Option(help="How fast an object's frequency falls with its rank.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the order of examples.")] = 0,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Number of steps, each of 16 examples; by default "
            + ", ".join(f"{number} ({name})" for name, number in _STEPS.items())
            + ".",
            min=1,
        ),
    ] = None,
) -> None:
    """Train a child of SmolLM2-135M-Instruct, in 10 (halueval) to 50 minutes (scenes) on two cores.

    scenes and easy_vqa: a LLaVA. Its trained weights go to FOLDER/weights and an ordinary checkpoint to
    FOLDER/model; the first state with an accuracy of 85 % (easy_vqa: 81 %) to FOLDER/early and
    FOLDER/early_model.

    halueval: a LoRA adapter that answers whether an answer is hallucinated, in FOLDER/adapter; the first
    state with an accuracy of 66 % is in FOLDER/early.

    The same command continues an interrupted run.
    """
    if subset not in SUBSETS:
        raise typer.BadParameter(f"{subset!r} is none of {', '.join(SUBSETS)}")
    if data != "scenes" and (subset, tail) != ("train", 1.0):
        raise typer.BadParameter(f"--part and --tail are about scenes: leave them out with --data {data}")
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(data, seed=seed, steps=steps or _STEPS[data], subset=subset, tail=tail)
    _check_config(folder / "config.json", config)
    began = time.monotonic()
    with progress_bar() as progress:
        bars: dict[str, TaskID] = {}

        def report(stage: str, step: int, total: int, note: str) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=total)
            progress.update(bars[stage], completed=step, description=f"{stage} ({note})")
            if step % 10 == 0:
                with (folder / "log.txt").open("a") as log:
                    log.write(f"{time.monotonic() - began:.0f}s {stage} {step}/{total} {note}\n")

        if isinstance(config, HaluEvalTraining):
            train_text(config, folder, report)
        else:
            train(config, folder, report)
    for weights, model in (("weights", "model"), ("early", "early_model")):
        if isinstance(config, TrainingConfig) and (folder / weights).is_dir():
            with replace_folder(folder / model) as partial:
                assemble(folder / weights, partial)
            print_line(str(folder / model))


def _config(data: Data, *, seed: int, steps: int, subset: str, tail: float) -> Config:
    if data == "halueval":
        return HaluEvalTraining(seed=seed, batch_size=16, steps=steps)
    if data == "easy_vqa":
        return EasyVqaTraining(seed=seed, batch_size=16, steps=steps)
    return ScenesTraining(subset=subset, tail=tail, seed=seed, batch_size=16, steps=steps)


def _check_config(file: Path, config: Config) -> None:
    """Save the configuration, or refuse to continue a run that has another one."""
    settings = dataclasses.asdict(config)
    if file.is_file() and json.loads(file.read_text()) != settings:
        raise typer.BadParameter(f"{file.parent} has a run with {file.read_text()}: choose another folder")
    file.write_text(json.dumps(settings))


if __name__ == "__main__":
    typer.run(main)
