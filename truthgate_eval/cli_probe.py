"""`truthgate probe`: activations of a text or vision-language model, probes, and a score artifact."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from truthgate_eval.errors import TaskError, TruthGateError
from truthgate_eval.hosts.manifests import MODELS
from truthgate_eval.terminal import progress_bar, say

if TYPE_CHECKING:
    from truthgate_eval.scores import TruthScores
    from truthgate_eval.sequences import Answers


def probe(
    output: Annotated[Path, typer.Option("--output", "-o", help="The .npz to write.")],
    tasks: Annotated[
        str | None, typer.Option(help="Multiple-choice tasks of lm-eval or lmms-eval, comma-separated.")
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="hf, or another lm-eval model over transformers; vlm, gated_llava, ... with pictures."
        ),
    ] = "hf",
    model_args: Annotated[
        str,
        typer.Option("--model_args", "-a", help="As in the host; hf's default: the packaged SmolLM2-135M."),
    ] = "",
    image: Annotated[
        str, typer.Option(help="With a vlm: the document's own picture, none, or a black one.")
    ] = "document",
    sequences: Annotated[
        Path | None, typer.Option(help="With a vlm: the authors' JSON lines, instead of tasks.")
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option("--images", help="Their folder of pictures; repeat for several.")
    ] = None,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing", "--allow_missing", help="Leave out sequences whose picture is missing."
        ),
    ] = False,
    limit: Annotated[float | None, typer.Option(help="Documents per task, or a fraction below 1.")] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", "-b", min=1, help="Sequences a batch.")] = 8,
    device: Annotated[str | None, typer.Option(help="Such as cuda:0 or cpu.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses folds and few-shot examples.")] = 42,
    apply_chat_template: Annotated[bool, typer.Option("--apply_chat_template")] = False,
    system_instruction: Annotated[str | None, typer.Option("--system_instruction")] = None,
    num_fewshot: Annotated[int | None, typer.Option("--num_fewshot", "-f", min=0)] = None,
    metadata: Annotated[str, typer.Option(help="JSON passed to the tasks, as in lm-eval.")] = "{}",
    include_path: Annotated[
        str | None, typer.Option("--include_path", help="A folder with tasks of your own.")
    ] = None,
    site: Annotated[str, typer.Option(help="Read W_o's output (post) or its input (pre).")] = "post",
    solver: Annotated[str, typer.Option(help="adamw (the paper's) or newton (to convergence).")] = "adamw",
    folds: Annotated[int, typer.Option(min=1, help="Mean over this many folds; 1: one 4:1 split.")] = 5,
    split: Annotated[str, typer.Option(help="Keep a question's sequences together, or not: sequence.")] = (
        "question"
    ),
) -> None:
    """Probe every attention head of a model and save the truth scores."""
    from lm_eval.utils import simple_parse_args_string

    from truthgate_eval.anatomy import check_site
    from truthgate_eval.picture_conditions import check_condition
    from truthgate_eval.probe import check_solver
    from truthgate_eval.scores import check_output
    from truthgate_eval.splits import check_split

    # What a typo can break is checked before minutes are spent on it.
    check_output(output)
    check_site(site)
    check_solver(solver)
    check_split(split, folds)
    check_condition(image)
    pictured = model == "vlm" or model in MODELS
    if not pictured and (image != "document" or sequences or images or allow_missing):
        raise TaskError("--image, --sequences, --images and --allow-missing need --model vlm or its like")
    arguments = simple_parse_args_string(model_args)
    names = tasks.split(",") if tasks else []
    options = {
        "limit": limit,
        "seed": seed,
        "num_fewshot": num_fewshot,
        "apply_chat_template": apply_chat_template,
        "system_instruction": system_instruction,
        "metadata": {**arguments, **_json(metadata)},
        "include_path": include_path,
    }
    if pictured:
        answers = (
            _from_file(sequences, images or [], names, limit, allow_missing=allow_missing)
            if sequences
            else _from_tasks(names, image, options)
        )
        job = _vlm_job(model, arguments, answers, image, device=device, chat=apply_chat_template)
    else:
        job = _lm_job(model, arguments, _named(names), options, device=device, batch_size=batch_size)
    with progress_bar() as bars:
        forward = bars.add_task("activations", total=job.sequences)
        fitting = bars.add_task("probes", total=job.heads)
        scores = job.run(
            site=site,
            solver=solver,
            folds=folds,
            split=split,
            seed=seed,
            batch_size=batch_size,
            capture_progress=lambda done: bars.advance(forward, done),
            probe_progress=lambda done: bars.advance(fitting, done),
        )
    scores.save(output)
    say(f"{scores.shape[0]} x {scores.shape[1]} truth scores of {scores.model} -> {output}")
    mean, best = scores.scores.mean(), scores.scores.max()
    say(f"mean {mean:.3f}, best {best:.3f}; look at them with: truthgate show {output}")


@dataclass(frozen=True)
class _Job:
    """A loaded model with its sequences: `run` takes the settings that both kinds of model share."""

    run: Callable[..., TruthScores]
    sequences: int
    heads: int


def _lm_job(
    model: str,
    arguments: dict[str, Any],
    names: list[str],
    options: dict[str, Any],
    *,
    device: str | None,
    batch_size: int,
) -> _Job:
    from truthgate_eval.anatomy import find_anatomy
    from truthgate_eval.hosts.lm_eval_probing import load_lm, probing_sequences
    from truthgate_eval.probing import probe_model

    lm = load_lm(model, arguments, batch_size=batch_size, device=device)
    sequences = probing_sequences(lm, names, **options)
    name = getattr(lm, "model_name", str(lm.pretrained))
    layers, heads = find_anatomy(lm.model).shape
    return _Job(partial(probe_model, lm.model, sequences, name=name), len(sequences), layers * heads)


def _vlm_job(
    model: str, arguments: dict[str, Any], answers: Answers, image: str, *, device: str | None, chat: bool
) -> _Job:
    from truthgate_eval.anatomy import find_anatomy
    from truthgate_eval.hosts.lmms_eval_probing import load_for_probing
    from truthgate_eval.picture_conditions import under_condition
    from truthgate_eval.probing import probe_vlm

    shown = under_condition(answers, image)
    vlm = load_for_probing(model, arguments, device=device, chat=chat)
    layers, heads = find_anatomy(vlm.model).shape
    return _Job(partial(probe_vlm, vlm, shown), len(shown), layers * heads)


def _from_tasks(names: list[str], image: str, options: dict[str, Any]) -> Answers:
    """Answers of lmms-eval's tasks; where no picture of theirs is wanted, of lm-eval's text tasks too."""
    from loguru import logger

    from truthgate_eval.hosts import lm_eval_probing, lmms_eval_probing

    # lmms-eval logs through loguru, which shows everything unless it is told not to.
    logger.remove()
    logger.add(sys.stderr, level="WARNING", format="{level}: {message}")
    names, include_path = _named(names), options["include_path"]
    chat = options["apply_chat_template"]
    if image != "document" and lm_eval_probing.has_tasks(names, include_path=include_path):
        if chat and options["system_instruction"]:
            raise TaskError("--system_instruction with --apply_chat_template is for text models only")
        # The model's own processor applies its template, around the picture too.
        return lm_eval_probing.task_answers(names, **{**options, "apply_chat_template": False})
    for name in ("num_fewshot", "system_instruction"):
        if options[name]:
            raise TaskError(
                f"--{name} is for lm-eval's text tasks: lmms-eval's take none when they are probed"
            )
    return lmms_eval_probing.task_answers(names, limit=options["limit"], include_path=include_path)


def _from_file(
    path: Path, images: list[Path], names: list[str], limit: float | None, *, allow_missing: bool
) -> Answers:
    from truthgate_eval.author_sequences import file_answers
    from truthgate_eval.pictures import PictureFolders

    if names:
        raise TaskError(f"--sequences {path} and --tasks {','.join(names)} exclude each other")
    if not images:
        raise TaskError("--sequences names pictures: say where they are with --images DIR")
    return file_answers(path, PictureFolders(images), limit=limit, allow_missing=allow_missing)


def _named(names: list[str]) -> list[str]:
    if not names:
        raise TaskError("nothing to probe on: name multiple-choice tasks with --tasks")
    return names


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise TruthGateError(f"--metadata is not JSON ({error}): {text}") from error
    if not isinstance(value, dict):
        raise TruthGateError(f"--metadata must be a JSON object, got {text}")
    return value
