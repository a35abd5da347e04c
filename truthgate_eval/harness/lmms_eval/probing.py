"""Vision-language models and lmms-eval's multiple-choice and yes/no tasks, for probing."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from lmms_eval.tasks import TaskManager, get_task_dict

from truthgate_eval.errors import ModelError, TaskError
from truthgate_eval.gating.gate_arguments import GATE_ARGUMENTS
from truthgate_eval.harness.choices import (
    answer_words,
    as_yes_no,
    give_choices,
    matched_documents,
    right_choices,
)
from truthgate_eval.harness.contrast import CONTRAST_ARGUMENTS
from truthgate_eval.harness.gated_model import check_not_given
from truthgate_eval.harness.lmms_eval.model import DEFAULTS
from truthgate_eval.harness.lmms_eval.requests import ImageRequest, leaf_tasks
from truthgate_eval.limits import apply_limit, check_limit
from truthgate_eval.metrics.clusters import find_cluster
from truthgate_eval.probing.config import AUTHORS_FORMAT, TASK_FORMAT, ProbeFormat
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample, next_group
from truthgate_eval.probing.surface import without_final_punctuation
from truthgate_eval.vision.loading import LOAD_ARGUMENTS, LoadOptions, load_vlm
from truthgate_eval.vision.model import VisionLanguageModel


def load_for_probing(
    model: str, arguments: Mapping[str, Any], *, device: str | None, chat: bool
) -> VisionLanguageModel:
    """Load a model without a gate, which writes sequences with its chat template or in the plain format.

    Args:
        model: `vlm`, or one of `gated_llava`, `gated_qwen2_5_vl`, ... for its default checkpoint.
        arguments: Those of `LoadOptions`.
        device: As in `LoadOptions`; `device` in `arguments` takes precedence.
        chat: Whether to use the chat template.

    Raises:
        ModelError: An argument is unknown or of a gate, or the model cannot be loaded.
    """
    reason = f"--model {model} is loaded without a gate and without a contrast"
    check_not_given(arguments, (*GATE_ARGUMENTS, *CONTRAST_ARGUMENTS), reason)
    options = {name: value for name, value in arguments.items() if name not in GATE_ARGUMENTS}
    unknown = sorted(set(options) - set(LOAD_ARGUMENTS))
    if unknown:
        raise ModelError(
            f"unknown argument {unknown[0]!r}: --model {model} takes {', '.join(LOAD_ARGUMENTS)}"
        )
    if not chat:
        if options.get("chat_template") not in (None, "plain"):
            raise ModelError(
                "chat_template=FILE has no effect on sequences without a chat template: text tasks and "
                "--sequences have one with --apply_chat_template, image tasks without --format authors"
            )
        options["chat_template"] = "plain"
    if device is not None and not options.get("device_map"):
        options.setdefault("device", device)
    options["pretrained"] = options.get("pretrained") or DEFAULTS["gated_vlm" if model == "vlm" else model]
    return load_vlm(LoadOptions.parse(options))


def load_dataset(
    names: list[str],
    *,
    limit: float | None = None,
    include_path: str | None = None,
    surface_matched: bool = False,
    format: ProbeFormat = TASK_FORMAT,
) -> ProbeDataset:
    """All answers of some multiple-choice or yes/no tasks, with their documents' images.

    Args:
        names: Task names; groups and tags are expanded.
        limit: Documents per task, as a number or as a fraction below 1.
        include_path: A folder with the user's own tasks.
        surface_matched: As in lm-eval's `load_dataset`.
        format: `task` asks as lmms-eval asks the task, and keeps its answers; `authors` leaves out what the
            task puts around its question (`pre_prompt` and `post_prompt`), and writes yes and no in lower
            case (`docs/method.md#format`).

    Raises:
        TaskError: A task is unknown, has no choices and not only yes or no as right answers, or has no
            matched answers.
        DataError: Its data is not prepared.
        TruthGateError: The limit leaves no document.
    """
    check_limit(limit)
    examples: list[ProbeExample] = []
    rows: dict[str, list[int]] = {}
    yes_no_answers: dict[str, list[str]] = {}
    for name, task in load_tasks(names, include_path):
        given = give_choices(name, task, task.eval_docs_no_media)
        if task.multiple_input:
            raise TaskError(f"task {name!r} has several questions to one answer: probing needs the opposite")
        if format == AUTHORS_FORMAT:
            _ask_plainly(task)
        if given is not None:
            yes_no_answers[name] = list(dict.fromkeys(task.doc_to_choice({})))
        _collect(name, task, limit, examples, rows, matched=surface_matched)
    settings = {
        "task": ",".join(names),
        "surface_matched": surface_matched,
        "format": format,
        **({"yes_no_answers": yes_no_answers} if yes_no_answers else {}),
        **answer_words(example.answer for example in examples),
    }
    return ProbeDataset(examples, rows, settings, bare_questions=format == AUTHORS_FORMAT)


@functools.lru_cache(maxsize=4)
def task_manager(include_path: str | None = None) -> TaskManager:
    """lmms-eval's tasks, ours and those of `include_path`; cached, since making it takes seconds."""
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
    yield from leaf_tasks(get_task_dict(names, manager))


def _ask_plainly(task: Any) -> None:
    """Make a task ask in the authors' format, in place."""
    around, choices_of = task.lmms_eval_specific_kwargs, task.doc_to_choice
    if around:
        prompts = dict.fromkeys(("pre_prompt", "post_prompt") & around.keys(), "")
        task.lmms_eval_specific_kwargs = {**around, **prompts}

    def in_lower_case(doc: Mapping[str, Any], *_: Any) -> list[str]:
        choices: list[str] = choices_of(doc)
        words = [as_yes_no(choice) or "" for choice in choices]
        return [*words] if all(words) else choices

    task.doc_to_choice = in_lower_case


def _collect(
    name: str,
    task: Any,
    limit: float | None,
    examples: list[ProbeExample],
    rows: dict[str, list[int]],
    *,
    matched: bool,
) -> None:
    """Add the examples of one task. Documents with the same question about the same image are one group."""
    split = task.config.test_split if task.has_test_docs() else task.config.validation_split
    data = (task.config.metadata or {}).get("data", name)
    first_group = next_group(examples)
    groups: dict[Hashable, int] = {}
    # Without the images, which are decoded when their batch runs.
    documents = task.eval_docs_no_media
    candidates = matched_documents(name, task, documents) if matched else range(len(documents))
    for doc_id in candidates[: apply_limit(limit, len(candidates))]:
        doc = documents[doc_id]
        text = task.doc_to_text(doc)
        load_document = functools.partial(_load_document, task, split, doc_id)
        request = ImageRequest(text, task.doc_to_visual, load_document, name, doc_id)
        image_key = _image_key(name, doc, doc_id)
        group = first_group + groups.setdefault((image_key, text), len(groups))
        rows.setdefault(data, []).append(int(doc.get("row", doc_id)))
        cluster = _cluster(doc, image_key)
        for choice, truthful in _distinct_answers(task, doc):
            answer = f" {without_final_punctuation(choice) if matched else choice}"
            examples.append(
                ProbeExample(text, answer, truthful, group, request.load_images, image_key, cluster)
            )


def _distinct_answers(task: Any, doc: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """The choices and whether each is right, without those that differ from one before in a space only."""
    seen: set[tuple[str, bool]] = set()
    for choice, truthful in zip(task.doc_to_choice(doc), right_choices(task, doc).tolist(), strict=True):
        if (choice.strip(), truthful) not in seen:
            seen.add((choice.strip(), truthful))
            yield choice, truthful


def _cluster(doc: Mapping[str, Any], image_key: Hashable) -> Hashable:
    """The image that a document shares with others, by the name that the task gives it.

    Not every task's name of an image tells images apart well enough to show one in place of another.
    """
    cluster = None if isinstance(doc.get("image_path"), str) else find_cluster(doc)
    return image_key if cluster is None or cluster.kind != "image" else cluster.name


def _image_key(task: str, doc: Mapping[str, Any], doc_id: int) -> Hashable:
    """Identifies a document's image by its file, or by its name, which other tasks may have as well."""
    if isinstance(doc.get("image_path"), str):
        return doc["image_path"]
    return task, doc["image"] if isinstance(doc.get("image"), str) else doc_id


def _load_document(task: Any, split: str, doc_id: int) -> Any:
    return task.dataset[split][doc_id]
