"""What `truthgate probe` is asked to do, made ready: a loaded model, its sequences and their controls."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from truthgate_eval.errors import TaskError
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.probing.controls import (
    NO_CONTEXT,
    Control,
    context_change,
    make_controls,
    swap_images,
)
from truthgate_eval.probing.dataset import ProbeDataset, load_author_dataset
from truthgate_eval.probing.image_conditions import DOCUMENT, NONE, apply_image_condition
from truthgate_eval.probing.run import run_image_probing, run_probing

Options = dict[str, Any]


@dataclass(frozen=True)
class ProbeJob:
    """A probing run that waits for its settings.

    Attributes:
        run: Takes the settings that text and vision-language models share.
        sequences: How many sequences will run through the model.
        probes: How many probes each seed fits.
    """

    capture_run: Callable[..., TruthScores]
    sequences: int
    probes: int


@dataclass(frozen=True)
class AuthorsFile:
    """The authors' JSON lines, the folders of their pictures, and whether pictures may be missing."""

    path: Path
    images: list[Path]
    allow_missing: bool


def make_lm_job(
    model: str,
    arguments: Options,
    names: list[str],
    options: Options,
    controls: Sequence[str],
    *,
    device: str | None,
    batch_size: int,
) -> ProbeJob:
    """A text model on lm-eval's tasks.

    Args:
        model: As on lm-eval's command line.
        arguments: Its model_args.
        names: The tasks.
        options: Those of lm-eval's `load_dataset`.
        controls: Names of the controls.
        device: As in lm-eval.
        batch_size: As in lm-eval.
    """
    from truthgate_eval.harness.lm_eval.probing import load_dataset, load_lm, tokenize

    lm = load_lm(model, arguments, batch_size=batch_size, device=device)
    answers = load_dataset(names, lm=lm, **options)

    def changed(name: str) -> Any:
        change = context_change(name, options["seed"])
        return tokenize(lm, load_dataset(names, lm=lm, change=change, **options))

    made = make_controls(controls, answers, changed, seed=options["seed"])
    run = partial(
        run_probing, lm.model, tokenize(lm, answers), name=getattr(lm, "model_name", str(lm.pretrained))
    )
    return _job(run, lm.model, answers, made)


def make_vlm_job(
    model: str,
    arguments: Options,
    names: list[str],
    options: Options,
    controls: Sequence[str],
    *,
    image: str,
    file: AuthorsFile | None,
    device: str | None,
) -> ProbeJob:
    """A vision-language model on either host's tasks, or on the authors' file.

    Args:
        model: `vlm`, or `gated_llava` and its like.
        arguments: Its model_args.
        names: The tasks.
        options: Those of lm-eval's `load_dataset`; lmms-eval's tasks know some of them.
        controls: Names of the controls.
        image: Which picture is shown.
        file: Instead of tasks.
        device: Where the model goes.
    """
    from truthgate_eval.harness.lmms_eval.probing import load_for_probing

    _quiet_host()
    in_text = file is None and _is_text(names, image, options)
    if file is not None:
        answers = _file_answers(file, names, options)
    else:
        answers = _text_answers(names, options) if in_text else _picture_answers(names, options)
    answers = apply_image_condition(answers, image)

    def changed(name: str) -> ProbeDataset:
        if in_text:
            change = context_change(name, options["seed"])
            return apply_image_condition(_text_answers(names, options, change=change), image)
        if image != DOCUMENT:
            raise TaskError(f"--image {image} shows no picture that --control {name} could change")
        if name == NO_CONTEXT:
            return apply_image_condition(answers, NONE)
        return swap_images(answers, options["seed"])

    made = make_controls(controls, answers, changed, seed=options["seed"])
    vlm = load_for_probing(model, arguments, device=device, chat=options["apply_chat_template"])
    return _job(partial(run_image_probing, vlm, answers), vlm.model, answers, made)


def _job(
    run: Callable[..., TruthScores], model: Any, answers: ProbeDataset, controls: list[Control]
) -> ProbeJob:
    layers, heads = find_attention_layout(model).shape
    runs = 1 + sum(control.sequences is not None for control in controls)
    probes = sum(1 if control.features is not None else layers * heads for control in controls)
    return ProbeJob(partial(run, controls=controls), runs * len(answers), layers * heads + probes)


def _quiet_host() -> None:
    from loguru import logger

    # lmms-eval logs through loguru, which shows everything unless it is told not to.
    logger.remove()
    logger.add(sys.stderr, level="WARNING", format="{level}: {message}")


def _is_text(names: list[str], image: str, options: Options) -> bool:
    """Whether the tasks are lm-eval's: they are, where their own pictures are not wanted and it has them."""
    from truthgate_eval.harness.lm_eval.probing import has_tasks

    return image != DOCUMENT and has_tasks(names, options["metadata"], include_path=options["include_path"])


def _text_answers(names: list[str], options: Options, **more: Any) -> ProbeDataset:
    from truthgate_eval.harness.lm_eval.probing import load_dataset

    if options["apply_chat_template"] and options["system_instruction"]:
        raise TaskError("--system_instruction with --apply_chat_template is for text models only")
    # The model's own processor applies its template, around the picture too.
    return load_dataset(names, **{**options, "apply_chat_template": False}, **more)


def _picture_answers(names: list[str], options: Options) -> ProbeDataset:
    from truthgate_eval.harness.lmms_eval.probing import load_dataset

    for name in ("num_fewshot", "system_instruction"):
        if options[name]:
            raise TaskError(
                f"--{name} is for lm-eval's text tasks: lmms-eval's take none when they are probed"
            )
    known = ("limit", "include_path", "surface_matched")
    return load_dataset(names, **{name: options[name] for name in known})


def _file_answers(file: AuthorsFile, names: list[str], options: Options) -> ProbeDataset:
    from truthgate_eval.data.images import ImageFolders

    if names:
        raise TaskError(f"--sequences {file.path} and --tasks {','.join(names)} exclude each other")
    if not file.images:
        raise TaskError("--sequences names pictures: say where they are with --images DIR")
    if options["surface_matched"]:
        raise TaskError("--surface-matched is for tasks, whose documents have several answers each")
    folders = ImageFolders(file.images)
    return load_author_dataset(file.path, folders, limit=options["limit"], allow_missing=file.allow_missing)
