"""lm-eval's multiple-choice and yes/no tasks as probing data (`docs/method.md#probing-data`).

Every choice of a document makes one sequence, context + choice, built and tokenized by lm-eval itself. Its
label is 1 where the choice is the task's target.
"""

from __future__ import annotations

import logging
from typing import Any

from lm_eval.api.registry import get_model
from lm_eval.api.task import Task
from lm_eval.evaluator_utils import get_sample_size
from lm_eval.models.huggingface import HFLM

from truthgate_eval.errors import ModelError, TaskError
from truthgate_eval.gating.gate_arguments import GATE_ARGUMENTS
from truthgate_eval.harness.choices import answer_words, give_choices, matched_documents, right_choices
from truthgate_eval.harness.contrast import CONTRAST_ARGUMENTS
from truthgate_eval.harness.gated_model import check_not_given
from truthgate_eval.harness.lm_eval.context_field import change_context
from truthgate_eval.harness.lm_eval.model import GatedHF
from truthgate_eval.harness.lm_eval.task_index import load_tasks
from truthgate_eval.inference.answer_tokens import drop_added_tokens
from truthgate_eval.inference.loglikelihood import check_request
from truthgate_eval.limits import apply_limit, check_limit
from truthgate_eval.metrics.clusters import find_cluster
from truthgate_eval.packaged.models import resolve_packaged
from truthgate_eval.packaged.smollm2 import SMOLLM2
from truthgate_eval.probing.controls import ContextChange
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample, TokenizedDataset, next_group
from truthgate_eval.probing.surface import without_final_punctuation

log = logging.getLogger(__name__)


def load_lm(model: str, model_args: dict[str, Any], *, batch_size: int, device: str | None) -> HFLM:
    """Load a model as `lm_eval --model MODEL --model_args ...` would, to read its activations.

    Args:
        model: `hf`, `gated_hf`, or another lm-eval model that holds a transformers model.
        model_args: As on lm-eval's command line; `hf` without `pretrained` takes the packaged model.
        batch_size: Sequences in a batch.
        device: As on lm-eval's command line; `device` in `model_args` takes precedence.

    Raises:
        ModelError: The model is unknown, cannot be loaded, is not a transformers model, or does more than it;
            or an argument changes nothing that is read.
        GateError: The strength of its gate is one to be found.
    """
    arguments = dict(model_args)
    if model in ("hf", "hf-auto", "huggingface"):
        # `hf` and gated_hf without a gate are the same model; gated_hf has better error messages.
        reason = f"--model {model} is loaded without a gate and without a contrast"
        check_not_given(arguments, (*GATE_ARGUMENTS, *CONTRAST_ARGUMENTS), reason)
        arguments = {"pretrained": SMOLLM2, **arguments, "scores": "none"}
        return GatedHF(**{"batch_size": batch_size, "device": device, **arguments})
    try:
        cls = get_model(model)
    except (ValueError, KeyError) as error:
        raise ModelError(
            f"lm-eval has no model {model!r}: use --model hf, or vlm for a model with images"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, HFLM)):
        raise ModelError(f"--model {model} holds no transformers model to read activations from: use hf")
    found: type[HFLM] = cls
    if found._model_call is not HFLM._model_call:
        raise ModelError(
            f"--model {model} answers with more than its transformers model ({found.__name__}._model_call), "
            "whose activations would be read: use --model hf, or vlm for a model with images"
        )
    if issubclass(found, GatedHF):
        reason = "only answers depend on it, and none is asked for"
        check_not_given(arguments, ("yes_offset", *CONTRAST_ARGUMENTS), reason)
    if isinstance(arguments.get("pretrained"), str):
        arguments["pretrained"] = resolve_packaged(arguments["pretrained"], "text")
    lm = found(**{"batch_size": batch_size, "device": device, **arguments})
    if isinstance(lm, GatedHF):
        lm.check_strength_is_known("there are none here")
    return lm


def load_dataset(
    names: list[str],
    *,
    limit: float | None = None,
    seed: int = 42,
    num_fewshot: int | None = None,
    lm: HFLM | None = None,
    apply_chat_template: bool = False,
    system_instruction: str | None = None,
    metadata: dict[str, Any] | None = None,
    include_path: str | None = None,
    surface_matched: bool = False,
    change: ContextChange | None = None,
) -> ProbeDataset:
    """All answers of some multiple-choice or yes/no tasks, built by lm-eval.

    Args:
        names: Task names; groups and tags are expanded.
        limit: Documents per task, as a number or as a fraction below 1, as in lm-eval.
        seed: Chooses the few-shot examples.
        num_fewshot: As in lm-eval.
        lm: Renders the chat template, if one is applied.
        apply_chat_template: As in lm-eval.
        system_instruction: As in lm-eval.
        metadata: Passed to the tasks, as lm-eval's `--metadata`.
        include_path: A folder with the user's own tasks.
        surface_matched: Keep only documents whose answers differ by at most one word in length, before
            `limit` counts them, and strip the answers' final punctuation.
        change: Replaces the documents' knowledge, for the controls of the context.

    Raises:
        TaskError: A task is unknown, has no choices and not only yes or no as right answers, has an empty
            answer or no matched ones, or does not say which field of a document is the knowledge that is to
            be changed.
        TruthGateError: The limit leaves no document.
    """
    check_limit(limit)
    examples: list[ProbeExample] = []
    rows: dict[str, list[int]] = {}
    yes_no_answers: dict[str, list[str]] = {}
    for name, task in load_tasks(names, metadata or {}, include_path=include_path).items():
        given = give_choices(name, task, task.eval_docs)
        if given is not None:
            yes_no_answers[name] = given
        if num_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=num_fewshot)
        task.set_fewshot_seed(seed=seed)
        template = lm if apply_chat_template else None
        chosen = _chosen(name, task, limit) if surface_matched else None
        if change is not None:
            change_context(name, task, change, chosen or range(apply_limit(limit, len(task.eval_docs))))
        task.build_all_requests(
            limit=get_sample_size(task, limit),
            samples=chosen,
            system_instruction=system_instruction,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=bool(num_fewshot),
            chat_template=template.apply_chat_template if template else None,
            tokenizer_name=template.tokenizer_name if template else "",
        )
        _collect(name, task, chosen, examples, rows)
    settings = {
        "task": ",".join(names),
        "num_fewshot": num_fewshot or 0,
        "chat_template": apply_chat_template,
        "system_instruction": system_instruction,
        "surface_matched": surface_matched,
        **({"yes_no_answers": yes_no_answers} if yes_no_answers else {}),
        **answer_words(example.answer for example in examples),
    }
    return ProbeDataset(examples, rows, settings)


def load_tokenized(lm: HFLM, names: list[str], **options: Any) -> TokenizedDataset:
    """All sequences of some multiple-choice or yes/no tasks, as tokens of a text model.

    Args:
        lm: The model whose tokenizer and chat template are used.
        names: Task names; groups and tags are expanded.
        **options: Those of `load_dataset`.

    Raises:
        TaskError: As `load_dataset`.
    """
    return tokenize(lm, load_dataset(names, lm=lm, **options))


def tokenize(lm: HFLM, dataset: ProbeDataset) -> TokenizedDataset:
    """The data set's sequences as tokens of a text model; the last token of each is the answer's last.

    Raises:
        DataError: An answer has no token of its own after its context, or more than the model takes.
    """
    max_length = lm.max_length
    tokens = [_encode(lm, example.context, example.answer, max_length) for example in dataset.examples]
    too_long = sum(len(ids) > max_length for ids in tokens)
    if too_long:
        log.warning(
            "%d of %d sequences are longer than the model's %d tokens: their contexts are cut from the left",
            too_long, len(tokens), max_length,
        )  # fmt: skip
        tokens = [ids[-max_length:] for ids in tokens]
    return TokenizedDataset(
        tokens, dataset.labels, dataset.groups, dataset.rows, dataset.fingerprint, dataset.settings
    )


def _chosen(name: str, task: Task, limit: float | None) -> list[int]:
    found = matched_documents(name, task, task.eval_docs)
    return found[: apply_limit(limit, len(found))]


def _collect(
    name: str, task: Any, chosen: list[int] | None, examples: list[ProbeExample], rows: dict[str, list[int]]
) -> None:
    """Add the examples of one task, whose requests lm-eval has built.

    lm-eval numbers `chosen` documents from 0. Matched answers lose their final punctuation.
    """
    data = (task.config.metadata or {}).get("data", name)
    first_group = next_group(examples)
    groups: dict[int, int] = {}
    for instance in task.instances:
        right = right_choices(task, instance.doc)
        if instance.idx >= right.size:  # mutual information's unconditional requests
            continue
        if instance.doc_id not in groups:
            groups[instance.doc_id] = first_group + len(groups)
            index = instance.doc_id if chosen is None else chosen[instance.doc_id]
            rows.setdefault(data, []).append(int(instance.doc.get("row", index)))
        context, choice = instance.args[:2]
        if chosen is not None:
            choice = without_final_punctuation(choice)
        if not choice.strip():
            raise TaskError(
                f"task {name!r}, document {instance.doc_id}: answer {instance.idx} is empty, with no token "
                "to read activations at"
            )
        group, cluster = groups[instance.doc_id], find_cluster(instance.doc)
        examples.append(
            ProbeExample(
                context, choice, bool(right[instance.idx]), group, cluster=cluster.name if cluster else None
            )
        )


def _encode(lm: HFLM, context: str, choice: str, max_length: int) -> list[int]:
    """Tokens of context + choice as in lm-eval's log-likelihood requests, up to the choice's last token."""
    if context == "":
        choice_ids = lm.tok_encode(choice, add_special_tokens=False)
        check_request([lm.prefix_token_id], choice_ids, max_length=max_length, texts=(context, choice))
        return [lm.prefix_token_id, *choice_ids]
    whole = lm.tok_encode(context + choice)
    ids = drop_added_tokens(whole, context + choice, lm.tokenizer)
    if len(ids) == len(whole):
        context_ids, choice_ids = lm._encode_pair(context, choice)
        check_request(context_ids, choice_ids, max_length=max_length, texts=(context, choice))
        ids = [*context_ids, *choice_ids]
    # Else the context's tokens end with an added token, too, at which lm-eval would cut `whole` one too late.
    return ids
