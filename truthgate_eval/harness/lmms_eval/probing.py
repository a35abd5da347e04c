"""Vision-language models and lmms-eval's multiple-choice tasks, for probing."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from lmms_eval.tasks import TaskManager, get_task_dict

from truthgate_eval.errors import ModelError, TaskError
from truthgate_eval.harness.lm_eval.probing import matched_documents, right_choices
from truthgate_eval.harness.lmms_eval.model import DEFAULTS
from truthgate_eval.harness.lmms_eval.requests import ImageRequest
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample, apply_limit
from truthgate_eval.probing.surface import without_final_punctuation
from truthgate_eval.vision.loading import LOAD_ARGUMENTS, LoadOptions, load_vlm
from truthgate_eval.vision.model import VisionLanguageModel


def load_for_probing(
    model: str, arguments: Mapping[str, Any], *, device: str | None, chat: bool
) -> VisionLanguageModel:
    """Load a model without a gate, to write sequences in its chat format or in the plain one.

    Args:
        model: `vlm`, or `gated_llava` and its like for their default checkpoints.
        arguments: Those of `LoadOptions`.
        device: As in `LoadOptions`; the arguments' own wins.
        chat: Whether to use the chat template.

    Raises:
        ModelError: An argument is unknown, or the model cannot be loaded.
    """
    given = dict(arguments)
    if given.pop("scores", "none") != "none":
        raise ModelError("a model is probed without a gate: leave scores out of --model_args")
    unknown = sorted(set(given) - set(LOAD_ARGUMENTS))
    if unknown:
        raise ModelError(
            f"unknown argument {unknown[0]!r}: --model {model} takes {', '.join(LOAD_ARGUMENTS)}"
        )
    if not chat:
        if given.get("chat_template") not in (None, "plain"):
            raise ModelError("chat_template=FILE has no effect without --apply_chat_template")
        given["chat_template"] = "plain"
    if device is not None and not given.get("device_map"):
        given.setdefault("device", device)
    given["pretrained"] = given.get("pretrained") or DEFAULTS["gated_vlm" if model == "vlm" else model]
    return load_vlm(LoadOptions.parse(given))


def load_dataset(
    names: list[str],
    *,
    limit: float | None = None,
    include_path: str | None = None,
    surface_matched: bool = False,
) -> ProbeDataset:
    """All answers of some multiple-choice tasks, with their documents' pictures.

    Args:
        names: Task names; groups and tags are expanded.
        limit: Documents per task, or a fraction below 1.
        include_path: A folder with tasks of the user's own.
        surface_matched: As for lm-eval's tasks.

    Raises:
        TaskError: A task is unknown, is not multiple-choice, or has no matched answers.
        DataError: Its data is not prepared.
    """
    items: list[ProbeExample] = []
    rows: dict[str, list[int]] = {}
    for name, task in load_tasks(names, include_path):
        if task.OUTPUT_TYPE != "multiple_choice" or task.multiple_input:
            raise TaskError(
                f"task {name!r} is of type {task.OUTPUT_TYPE}: probing needs a multiple-choice task, "
                "whose choices are right or wrong answers to one question"
            )
        _collect(name, task, limit, items, rows, matched=surface_matched)
    settings = {"task": ",".join(names), "surface_matched": surface_matched}
    return ProbeDataset(items, rows, settings, bare_questions=True)


@functools.lru_cache(maxsize=4)
def task_manager(include_path: str | None = None) -> TaskManager:
    """lmms-eval's tasks, ours and those of `include_path`; made once in a process, since it takes seconds."""
    return TaskManager(include_path=include_path)


def load_tasks(names: list[str], include_path: str | None = None) -> Iterator[tuple[str, Any]]:
    """The leaf tasks of these names, as lmms-eval loads them.

    Raises:
        TaskError: A name is unknown; the message offers the nearest ones.
    """
    manager = task_manager(include_path)
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "`lmms_eval --tasks list` lists them all"
            raise TaskError(f"lmms-eval has no task {name!r}: {hint}")
    yield from _leaves(get_task_dict(names, manager))


def _leaves(tasks: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Task objects out of the nested groups that the host returns."""
    for name, task in tasks.items():
        if isinstance(task, Mapping):
            yield from _leaves(task)
        else:
            yield str(name), task[1] if isinstance(task, tuple) else task


def _collect(
    name: str,
    task: Any,
    limit: float | None,
    items: list[ProbeExample],
    rows: dict[str, list[int]],
    *,
    matched: bool,
) -> None:
    """Add one task's answers; questions are numbered on from those before."""
    split = task.config.test_split if task.has_test_docs() else task.config.validation_split
    data = (task.config.metadata or {}).get("data", name)
    before = items[-1].group + 1 if items else 0
    groups: dict[Hashable, int] = {}
    # Without the pictures: they are decoded when their batch runs.
    documents = task.eval_docs_no_media
    candidates = matched_documents(name, task, documents) if matched else range(len(documents))
    for doc_id in candidates[: apply_limit(limit, len(candidates))]:
        doc = documents[doc_id]
        text = task.doc_to_text(doc)
        document = functools.partial(_document, task, split, doc_id)
        question = ImageRequest(text, task.doc_to_visual, document, name, doc_id)
        # Two documents may ask one question about one picture, with other answers.
        picture = doc["image"] if isinstance(doc.get("image"), str) else (name, doc_id)
        group = before + groups.setdefault((picture, text), len(groups))
        rows.setdefault(data, []).append(int(doc.get("row", doc_id)))
        for choice, truthful in zip(task.doc_to_choice(doc), right_choices(task, doc), strict=True):
            answer = f" {without_final_punctuation(choice) if matched else choice}"
            items.append(ProbeExample(text, answer, bool(truthful), group, question.load_images, picture))


def _document(task: Any, split: str, doc_id: int) -> Any:
    return task.dataset[split][doc_id]
