"""lm-eval's multiple-choice tasks as probing data.

Every choice of a document makes one sequence, context + choice, built and tokenised by
lm-eval itself; its label is 1 where the choice is the task's target.
"""

from __future__ import annotations

import difflib
from typing import Any

import numpy as np
from lm_eval.api.registry import get_model
from lm_eval.api.task import Task
from lm_eval.evaluator_utils import get_sample_size
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from truthgate_eval.assets import SMALL_MODEL, resolve_pretrained
from truthgate_eval.errors import ModelError, TaskError
from truthgate_eval.hosts.lm_eval import GatedHF
from truthgate_eval.sequences import ProbingSequences, text_fingerprint


def load_lm(model: str, model_args: dict[str, Any], *, batch_size: int, device: str | None) -> HFLM:
    """Load a model as `lm_eval --model MODEL --model_args ...` would.

    Args:
        model: `hf`, `gated_hf`, or another lm-eval model that holds a transformers model.
        model_args: As on lm-eval's command line; `hf` without `pretrained` takes the packaged model.
        batch_size: Sequences to a batch.
        device: As on lm-eval's command line.

    Raises:
        ModelError: The model is unknown, cannot be loaded, or is not a transformers model.
    """
    arguments = dict(model_args)
    if model in ("hf", "hf-auto", "huggingface"):
        # `hf` and the wrapper without a gate are the same model; the wrapper explains mistakes.
        arguments = {"pretrained": SMALL_MODEL, **arguments, "scores": "none"}
        return GatedHF(batch_size=batch_size, device=device, **arguments)
    try:
        cls = get_model(model)
    except (ValueError, KeyError) as error:
        raise ModelError(f"lm-eval has no model {model!r}: use --model hf") from error
    if not (isinstance(cls, type) and issubclass(cls, HFLM)):
        raise ModelError(f"--model {model} holds no transformers model to read activations from: use hf")
    if "pretrained" in arguments:
        arguments["pretrained"] = resolve_pretrained(arguments["pretrained"])
    return cls(batch_size=batch_size, device=device, **arguments)


def load_tasks(names: list[str], metadata: dict[str, Any]) -> dict[str, Task]:
    """The leaf tasks of these names, as lm-eval loads them.

    Raises:
        TaskError: A name is unknown; the message offers the nearest ones.
    """
    manager = TaskManager(metadata=metadata)
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "`lm_eval ls tasks` lists them all"
            raise TaskError(f"lm-eval has no task {name!r}: {hint}")
    return dict(manager.load(names)["tasks"])


def probing_sequences(
    lm: HFLM,
    names: list[str],
    *,
    limit: float | None = None,
    seed: int = 42,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    system_instruction: str | None = None,
    metadata: dict[str, Any] | None = None,
) -> ProbingSequences:
    """All sequences of some multiple-choice tasks.

    Args:
        lm: The model, whose tokenizer and chat template are used.
        names: Task names; groups and tags are expanded.
        limit: Documents per task, or a fraction below 1, as in lm-eval.
        seed: Chooses the few-shot examples.
        num_fewshot: As in lm-eval.
        apply_chat_template: As in lm-eval.
        system_instruction: As in lm-eval.
        metadata: Passed to the tasks, as lm-eval's `--metadata`.

    Raises:
        TaskError: A task is unknown, or is not multiple-choice.
    """
    collected = _Collected()
    for name, task in load_tasks(names, metadata or {}).items():
        if task.OUTPUT_TYPE != "multiple_choice":
            raise TaskError(
                f"task {name!r} is of type {task.OUTPUT_TYPE}: probing needs a multiple-choice task, "
                "whose choices are right or wrong answers"
            )
        if num_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=num_fewshot)
        task.set_fewshot_seed(seed=seed)
        task.build_all_requests(
            limit=get_sample_size(task, limit),
            system_instruction=system_instruction,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=bool(num_fewshot),
            chat_template=lm.apply_chat_template if apply_chat_template else None,
            tokenizer_name=lm.tokenizer_name if apply_chat_template else "",
        )
        collected.add(lm, name, task)
    settings = {
        "task": ",".join(names),
        "num_fewshot": num_fewshot or 0,
        "chat_template": apply_chat_template,
        "system_instruction": system_instruction,
    }
    return collected.sequences(settings)


class _Collected:
    """Sequences gathered over tasks, with documents numbered through."""

    def __init__(self) -> None:
        self.tokens: list[list[int]] = []
        self.texts: list[tuple[str, int]] = []
        self.groups: list[int] = []
        self.rows: dict[str, list[int]] = {}

    def add(self, lm: HFLM, name: str, task: Any) -> None:
        """Take one task's requests, built by lm-eval."""
        data = (task.config.metadata or {}).get("data", name)
        before = max(self.groups, default=-1) + 1
        seen: dict[int, int] = {}
        for instance in task.instances:
            right = _right_choices(task, instance.doc)
            if instance.idx >= right.size:  # mutual information's unconditional requests
                continue
            if instance.doc_id not in seen:
                seen[instance.doc_id] = before + len(seen)
                self.rows.setdefault(data, []).append(int(instance.doc.get("row", instance.doc_id)))
            context, choice = instance.args[:2]
            self.tokens.append(_encode(lm, context, choice))
            self.texts.append((context + choice, int(right[instance.idx])))
            self.groups.append(seen[instance.doc_id])

    def sequences(self, settings: dict[str, Any]) -> ProbingSequences:
        """What was gathered."""
        labels = np.array([label for _, label in self.texts], dtype=np.int64)
        groups = np.array(self.groups, dtype=np.int64)
        return ProbingSequences(
            self.tokens, labels, groups, self.rows, text_fingerprint(self.texts), settings
        )


def _right_choices(task: Any, doc: dict[str, Any]) -> np.ndarray:
    """Which choices are targets, bool [choices], for each way that lm-eval writes a target."""
    if task.multiple_input:  # the choices are contexts, and doc_to_text says which one is right
        choices, target = task.doc_to_choice(doc), task.doc_to_text(doc)
    else:
        choices, target = task.doc_to_choice(doc), task.doc_to_target(doc)
    if isinstance(target, str):
        target = choices.index(target) if target in choices else int(target)
    right = np.zeros(len(choices), dtype=bool)
    right[target] = True
    return right


def _encode(lm: HFLM, context: str, choice: str) -> list[int]:
    """Tokens of context + choice, as lm-eval's log-likelihood requests have them."""
    if context == "":
        pair = [lm.prefix_token_id], lm.tok_encode(choice, add_special_tokens=False)
    else:
        pair = lm._encode_pair(context, choice)
    return [*pair[0], *pair[1]][-lm.max_length :]
