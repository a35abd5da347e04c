"""What `truthgate probe` probes: tasks of either harness, or the authors' file, as one data set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from truthgate_eval.errors import ModelError, TaskError
from truthgate_eval.probing.config import (
    AUTHORS_FORMAT,
    DOCUMENT,
    TASK_FORMAT,
    ImageCondition,
    ProbeFormat,
)
from truthgate_eval.probing.controls import ContextChange
from truthgate_eval.probing.dataset import ProbeDataset, load_author_dataset
from truthgate_eval.probing.image_conditions import apply_image_condition
from truthgate_eval.processes import Processes


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
        format: How image tasks ask: as the `task` is evaluated, or in the `authors`' format. Text tasks ask
            as they are written, which for those of this package is the authors' format.

    Raises:
        TaskError: The authors' format, which has no chat template, and a chat template; or there is no folder
            `include_path`, which the harnesses pass over.
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
    format: ProbeFormat = TASK_FORMAT

    def __post_init__(self) -> None:
        if self.format == AUTHORS_FORMAT and self.apply_chat_template:
            raise TaskError("--format authors has no chat template: leave --apply_chat_template out")
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise TaskError(f"--include_path {self.include_path} is no folder")


@dataclass(frozen=True)
class AuthorsFile:
    """The authors' JSON lines, the folders of their images, and whether images may be missing."""

    path: Path
    images: tuple[Path, ...]
    allow_missing: bool


def load_vlm_dataset(
    options: DataOptions, *, image: ImageCondition, file: AuthorsFile | None
) -> ProbeDataset:
    """What a vision-language model is probed on, with the images of a condition.

    Args:
        options: The tasks.
        image: Which image the model gets.
        file: Instead of tasks.
    """
    if file is not None:
        dataset = _load_authors_file(file, options)
    elif are_text_tasks(options, image):
        dataset = load_text_for_vlm(options)
    else:
        dataset = _load_image_tasks(options)
    described = {"chat_template": writes_chat_template(options, image=image, file=file)}
    dataset = replace(dataset, settings={**dataset.settings, **described})
    return apply_image_condition(dataset, image)


def writes_chat_template(options: DataOptions, *, image: ImageCondition, file: AuthorsFile | None) -> bool:
    """Whether a vision-language model gets its sequences in its chat template.

    Image tasks are evaluated in it. In text tasks the user decides, as in lm-eval, and the authors' file was
    made without one.
    """
    asks_as_evaluated = options.format == TASK_FORMAT and file is None and not are_text_tasks(options, image)
    return options.apply_chat_template or asks_as_evaluated


def are_text_tasks(options: DataOptions, image: ImageCondition) -> bool:
    """Whether the tasks are taken from lm-eval: where it has them and their own images are not needed."""
    from truthgate_eval.harness.lm_eval.task_index import has_tasks

    return image != DOCUMENT and has_tasks(
        list(options.tasks), options.metadata, include_path=options.include_path
    )


def load_text(
    options: DataOptions,
    *,
    lm: Any = None,
    change: ContextChange | None = None,
    apply_chat_template: bool | None = None,
) -> ProbeDataset:
    """The answers of lm-eval's tasks.

    Args:
        options: The tasks.
        lm: Renders the chat template.
        change: Replaces the documents' knowledge.
        apply_chat_template: In place of the option of that name.

    Raises:
        TaskError: See `check_text_format`, which is also called before a text model is loaded.
    """
    from truthgate_eval.harness.lm_eval.probing import load_dataset

    check_text_format(options)
    dataset = load_dataset(
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
    return replace(dataset, settings={**dataset.settings, "format": options.format})


def check_text_format(options: DataOptions) -> None:
    """Refuse the authors' format, which only tasks with images have.

    Raises:
        TaskError: It is asked for.
    """
    if options.format == AUTHORS_FORMAT:
        raise TaskError("--format authors is for tasks with images: text tasks have one format")


def load_text_for_vlm(options: DataOptions, *, change: ContextChange | None = None) -> ProbeDataset:
    """The answers of lm-eval's tasks for a vision-language model, which applies its own template."""
    if options.apply_chat_template and options.system_instruction:
        raise TaskError("--system_instruction with --apply_chat_template is for text models only")
    return load_text(options, change=change, apply_chat_template=False)


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
        format=options.format,
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
    dataset = load_author_dataset(file.path, folders, limit=options.limit, allow_missing=file.allow_missing)
    described = {} if options.apply_chat_template else {"format": AUTHORS_FORMAT}
    return replace(dataset, settings={**dataset.settings, **described})


def check_not_split(arguments: dict[str, Any]) -> None:
    """Refuse a text model of which each process would have a part: probing gives each its own sequences.

    Raises:
        ModelError: `tp_plan` is given.
    """
    if arguments.get("tp_plan"):
        raise ModelError(
            "tp_plan splits a model over processes, and probing splits the sequences: leave it out, or "
            "spread the model over the devices of one process with parallelize=True"
        )


def on_own_device(
    arguments: dict[str, Any], device: str | None, processes: Processes
) -> tuple[dict[str, Any], str | None]:
    """A vision-language model's arguments and device where each of several processes has a device of its own.

    lm-eval's models look after that themselves.

    Args:
        arguments: The model's arguments.
        device: The command's `--device`.
        processes: The processes.

    Raises:
        ModelError: `device_map` would spread the model over the devices of other processes.
    """
    if processes.count == 1:
        return arguments, device
    if arguments.get("device_map"):
        raise ModelError("device_map spreads one model over the devices: start one process only")
    chosen = arguments.get("device") or device
    others = {name: value for name, value in arguments.items() if name != "device"}
    return others, "cpu" if chosen == "cpu" else None
