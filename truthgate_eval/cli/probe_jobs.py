"""The jobs of `truthgate probe`: a loaded model, its sequences and their controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from truthgate_eval.errors import TaskError
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.probing.config import (
    DOCUMENT,
    NO_CONTEXT,
    NONE,
    CaptureConfig,
    ControlName,
    ImageCondition,
    ProbeConfig,
)
from truthgate_eval.probing.controls import ContextChange, Control, context_change, make_controls, swap_images
from truthgate_eval.probing.cross_validation import Progress
from truthgate_eval.probing.dataset import ProbeDataset, TokenizedDataset, load_author_dataset
from truthgate_eval.probing.image_conditions import apply_image_condition
from truthgate_eval.probing.run import run_image_probing, run_probing


@dataclass(frozen=True)
class DataOptions:
    """What to probe on, as lm-eval's `load_dataset` takes it. lmms-eval's tasks take some of these only.

    Attributes:
        tasks: Names of tasks, groups and tags.
        limit: Documents per task, as a number or as a fraction below 1.
        seed: Chooses the few-shot examples, and what the controls swap and shuffle.
        num_fewshot: As in lm-eval.
        apply_chat_template: As in lm-eval.
        system_instruction: As in lm-eval.
        metadata: Passed to the tasks.
        include_path: A folder with the user's own tasks.
        surface_matched: Keep only documents whose answers are about equally long.
    """

    tasks: tuple[str, ...]
    limit: float | None
    seed: int
    num_fewshot: int | None
    apply_chat_template: bool
    system_instruction: str | None
    metadata: dict[str, Any]
    include_path: str | None
    surface_matched: bool


@dataclass(frozen=True)
class AuthorsFile:
    """The authors' JSON lines, the folders of their images, and whether images may be missing."""

    path: Path
    images: tuple[Path, ...]
    allow_missing: bool


class RunProbing(Protocol):
    """`run_probing` or `run_image_probing` of a model, its sequences and their controls."""

    def __call__(
        self,
        config: ProbeConfig,
        *,
        capture_config: CaptureConfig,
        capture_progress: Progress,
        probe_progress: Progress,
    ) -> TruthScores:
        """The artifact."""


@dataclass(frozen=True)
class ProbeJob:
    """A probing run that needs only its configuration.

    Attributes:
        run: The run.
        num_sequences: How many sequences will run through the model.
        num_probes: How many probes each seed fits.
    """

    run: RunProbing
    num_sequences: int
    num_probes: int


def make_lm_job(
    model: str,
    arguments: dict[str, Any],
    options: DataOptions,
    controls: Sequence[ControlName],
    *,
    device: str | None,
    batch_size: int,
) -> ProbeJob:
    """A text model on lm-eval's tasks.

    Args:
        model: As on lm-eval's command line.
        arguments: Its model_args.
        options: What to probe on.
        controls: Names of the controls.
        device: As in lm-eval.
        batch_size: As in lm-eval.
    """
    from truthgate_eval.harness.lm_eval.probing import load_lm, tokenize

    lm = load_lm(model, arguments, batch_size=batch_size, device=device)
    dataset = _load_text(options, lm=lm)

    def changed(name: ControlName) -> TokenizedDataset:
        return tokenize(lm, _load_text(options, lm=lm, change=context_change(name, options.seed)))

    made = make_controls(controls, dataset, changed, seed=options.seed)
    name = getattr(lm, "model_name", str(lm.pretrained))
    run = partial(run_probing, lm.model, tokenize(lm, dataset), name=name, controls=made)
    return _job(run, lm.model, dataset, made)


def make_vlm_job(
    model: str,
    arguments: dict[str, Any],
    options: DataOptions,
    controls: Sequence[ControlName],
    *,
    image: ImageCondition,
    file: AuthorsFile | None,
    device: str | None,
) -> ProbeJob:
    """A vision-language model on tasks of either harness, or on the authors' file.

    Args:
        model: `vlm`, `gated_llava`, ...
        arguments: Its model_args.
        options: What to probe on.
        controls: Names of the controls.
        image: Which image the model gets.
        file: Instead of tasks.
        device: Where the model goes.
    """
    from truthgate_eval.harness.lmms_eval.probing import load_for_probing
    from truthgate_eval.harness.quiet import log_to_stderr

    log_to_stderr()  # lmms-eval has just been imported
    text_tasks = file is None and _are_text_tasks(options, image)
    if file is not None:
        dataset = _load_authors_file(file, options)
    else:
        dataset = _load_text_for_vlm(options) if text_tasks else _load_image_tasks(options)
    dataset = apply_image_condition(dataset, image)

    def changed(name: ControlName) -> ProbeDataset:
        if text_tasks:
            change = context_change(name, options.seed)
            return apply_image_condition(_load_text_for_vlm(options, change=change), image)
        if image != DOCUMENT:
            raise TaskError(f"--image {image} shows no image that --control {name} could change")
        if name == NO_CONTEXT:
            return apply_image_condition(dataset, NONE)
        return swap_images(dataset, options.seed)

    made = make_controls(controls, dataset, changed, seed=options.seed)
    vlm = load_for_probing(model, arguments, device=device, chat=options.apply_chat_template)
    return _job(partial(run_image_probing, vlm, dataset, controls=made), vlm.model, dataset, made)


def _job(run: RunProbing, model: Any, dataset: ProbeDataset, controls: list[Control]) -> ProbeJob:
    layers, heads = find_attention_layout(model).shape
    captures = 1 + sum(control.sequences is not None for control in controls)
    of_controls = sum(1 if control.features is not None else layers * heads for control in controls)
    return ProbeJob(run, captures * len(dataset), layers * heads + of_controls)


def _are_text_tasks(options: DataOptions, image: ImageCondition) -> bool:
    """Whether the tasks are taken from lm-eval: where it has them and their own images are not needed."""
    from truthgate_eval.harness.lm_eval.probing import has_tasks

    return image != DOCUMENT and has_tasks(
        list(options.tasks), options.metadata, include_path=options.include_path
    )


def _load_text(
    options: DataOptions,
    *,
    lm: Any = None,
    change: ContextChange | None = None,
    apply_chat_template: bool | None = None,
) -> ProbeDataset:
    from truthgate_eval.harness.lm_eval.probing import load_dataset

    return load_dataset(
        list(options.tasks),
        limit=options.limit,
        seed=options.seed,
        num_fewshot=options.num_fewshot,
        lm=lm,
        apply_chat_template=(
            options.apply_chat_template if apply_chat_template is None else apply_chat_template
        ),
        system_instruction=options.system_instruction,
        metadata=options.metadata,
        include_path=options.include_path,
        surface_matched=options.surface_matched,
        change=change,
    )


def _load_text_for_vlm(options: DataOptions, *, change: ContextChange | None = None) -> ProbeDataset:
    if options.apply_chat_template and options.system_instruction:
        raise TaskError("--system_instruction with --apply_chat_template is for text models only")
    # The model's own processor applies its template later, with the image in it.
    return _load_text(options, change=change, apply_chat_template=False)


def _load_image_tasks(options: DataOptions) -> ProbeDataset:
    from truthgate_eval.harness.lmms_eval.probing import load_dataset

    for name in ("num_fewshot", "system_instruction"):
        if getattr(options, name):
            raise TaskError(
                f"--{name} is for lm-eval's text tasks: lmms-eval's take none when they are probed"
            )
    return load_dataset(
        list(options.tasks),
        limit=options.limit,
        include_path=options.include_path,
        surface_matched=options.surface_matched,
    )


def _load_authors_file(file: AuthorsFile, options: DataOptions) -> ProbeDataset:
    from truthgate_eval.data.images import ImageFolders

    if options.tasks:
        raise TaskError(f"--sequences {file.path} and --tasks {','.join(options.tasks)} exclude each other")
    if not file.images:
        raise TaskError("--sequences names images: say where they are with --images DIR")
    if options.surface_matched:
        raise TaskError("--surface-matched is for tasks, whose documents have several answers each")
    folders = ImageFolders(file.images)
    return load_author_dataset(file.path, folders, limit=options.limit, allow_missing=file.allow_missing)
