"""The packaged base model and its child, and what they give in each setting."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lm_eval
import lm_eval.tasks
import lmms_eval.evaluator
import lmms_eval.tasks
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from scripts.numerics.settings import (
    CHILD,
    CHILD_LAM,
    CHILD_SCORES,
    CHOICE_TASK,
    GENERATION,
    POLL_LOG_ODDS_TASK,
    POLL_TASK,
    PROBE_TASK,
    TEXT_TASK,
    Results,
    Setting,
    Size,
)
from truthgate_eval.gating.attention_layout import AttentionLayout, find_attention_layout
from truthgate_eval.harness.lm_eval.model import GatedHF
from truthgate_eval.harness.lm_eval.probing import load_tokenized
from truthgate_eval.harness.lmms_eval.model import GatedVLM
from truthgate_eval.packaged.smollm2 import SMOLLM2, resolve_smollm2
from truthgate_eval.paths import shipped
from truthgate_eval.probing.capture import capture
from truthgate_eval.processes import join


class Models:
    """The packaged base model and its child in one dtype, and the inputs that they are given."""

    def __init__(self, dtype: str, size: Size) -> None:
        self.size = size
        self._checked: dict[str, Any] = {}
        self.base = GatedHF(dtype=dtype, device="cpu", batch_size=1)
        # Activations are those of the model without a gate, as `truthgate probe` takes them.
        self.ungated = transformers.AutoModelForCausalLM.from_pretrained(
            resolve_smollm2(SMOLLM2), dtype=dtype
        )
        self.layout = find_attention_layout(self.ungated)
        self.sequences = load_tokenized(self.base, [PROBE_TASK], limit=size.probed).tokens
        self.child = GatedVLM(
            CHILD, dtype=dtype, device="cpu", scores=CHILD_SCORES, lam=CHILD_LAM, batch_size=1
        )
        self.choices, self.texts = self._text_requests(CHOICE_TASK), self._text_requests(TEXT_TASK)
        self.polls, self.answers = self._poll_requests()

    def run(self, setting: Setting) -> Results:
        """All results, in one process."""
        self._set(setting)
        order = setting.order
        log_likelihoods = in_order(order, self.choices, self.base.loglikelihood)
        losses = in_order(order, self.polls, self.child.loglikelihood)
        return Results(
            [value for value, _ in log_likelihoods],
            np.stack(in_order(order, self.sequences, lambda own: self._activations(own, setting))),
            in_order(order, self.texts, self.base.generate_until),
            [-loss for loss, _ in losses],
            in_order(order, self.answers, self.child.generate_until),
        )

    def run_in_processes(self, setting: Setting) -> Results | None:
        """All results through the harnesses, which share them out; None in other processes than the first."""
        self._set(setting)
        own = {
            "model": self.base, "task_manager": text_tasks(), "bootstrap_iters": 0, "log_samples": True,
            "verbosity": "ERROR",
        }  # fmt: skip
        choices = lm_eval.simple_evaluate(tasks=[CHOICE_TASK], limit=self.size.documents, **own)
        texts = lm_eval.simple_evaluate(
            tasks=[TEXT_TASK], limit=self.size.texts, gen_kwargs=GENERATION, **own
        )
        activations = self._activations(self.sequences, setting)
        polls = lmms_eval.evaluator.simple_evaluate(
            model=self.child, tasks=[POLL_LOG_ODDS_TASK, POLL_TASK], limit=self.size.polls,
            task_manager=poll_tasks(), bootstrap_iters=0, log_samples=True,
        )  # fmt: skip
        if choices is None or texts is None or polls is None:
            return None
        losses = [pair for row in _samples(polls, POLL_LOG_ODDS_TASK) for pair in row["filtered_resps"]]
        return Results(
            [float(value) for row in _samples(choices, CHOICE_TASK) for ((value, _),) in row["resps"]],
            activations,
            [row["resps"][0][0] for row in _samples(texts, TEXT_TASK)],
            [-float(loss) for loss, _ in losses],
            [row["filtered_resps"][0] for row in _samples(polls, POLL_TASK)],
        )

    def _set(self, setting: Setting) -> None:
        for model, cached in ((self.base, "shared_model"), (self.child, "question_engine")):
            # The models keep their engine, checked once, and what is kept for `off` is None.
            if model.engine == "auto" and cached in vars(model):
                self._checked[cached] = vars(model)[cached]
            vars(model).pop(cached, None)
            model.engine = setting.engine
            if setting.engine == "auto" and cached in self._checked:
                vars(model)[cached] = self._checked[cached]
        self.base.batch_size_per_gpu = self.child.batch_size = setting.batch_size

    def _activations(self, sequences: Sequence[Sequence[int]], setting: Setting) -> Any:
        if setting.engine == "off":
            return plain_activations(self.ungated, self.layout, sequences, int(setting.batch_size))
        return capture(
            self.ungated, sequences, batch_size=setting.batch_size, layout=self.layout, processes=join()
        )

    def _text_requests(self, name: str) -> list[Any]:
        """lm-eval's requests of a task."""
        task = text_tasks().load([name])["tasks"][name]
        count = self.size.documents if name == CHOICE_TASK else self.size.texts
        task.build_all_requests(limit=count, rank=0, world_size=1)
        if name == TEXT_TASK:
            for request in task.instances:
                request.arguments = (request.args[0], dict(GENERATION))
        return task.instances

    def _poll_requests(self) -> tuple[list[Any], list[Any]]:
        """lmms-eval's requests for log-likelihoods and for texts."""
        found = lmms_eval.tasks.get_task_dict([POLL_LOG_ODDS_TASK, POLL_TASK], poll_tasks())
        for name, task in found.items():
            task.build_all_requests(limit=self.size.polls, rank=0, world_size=1)
            self.child.task_dict[name] = task.dataset
        return found[POLL_LOG_ODDS_TASK].instances, found[POLL_TASK].instances


@functools.cache
def text_tasks() -> Any:
    """lm-eval's task manager with our tasks alone."""
    return lm_eval.tasks.TaskManager(include_path=str(shipped("tasks") / "lm_eval"), include_defaults=False)


@functools.cache
def poll_tasks() -> Any:
    """lmms-eval's task manager with our tasks alone."""
    folder = str(shipped("tasks") / "lmms_eval")
    return lmms_eval.tasks.TaskManager(include_path=folder, include_defaults=False)


def _samples(run: Mapping[str, Any], task: str) -> list[dict[str, Any]]:
    return sorted(run["samples"][task], key=lambda row: int(row["doc_id"]))


def plain_activations(
    model: Any, layout: AttentionLayout, sequences: Sequence[Sequence[int]], batch_size: int
) -> list[NDArray[np.float32]]:
    """[layers, heads, width] of each sequence's last token, by hooks; batches are padded on the right."""
    kept: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        return lambda _module, _inputs, output: kept.__setitem__(layer, output)

    hooks = [p.module.register_forward_hook(keep(n)) for n, p in enumerate(layout.projections)]
    found = []
    try:
        for start in range(0, len(sequences), batch_size):
            rows = [list(row) for row in sequences[start : start + batch_size]]
            longest = max(map(len, rows))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
            with torch.no_grad():
                model(input_ids=ids, attention_mask=mask, use_cache=False)
            for n, row in enumerate(rows):
                layers = [kept[layer][n, len(row) - 1].float() for layer in range(len(hooks))]
                found.append(torch.stack(layers).reshape(*layout.shape, -1).numpy())
    finally:
        for hook in hooks:
            hook.remove()
    return found


def in_order(order: str, inputs: Sequence[Any], answer: Callable[[list[Any]], Sequence[Any]]) -> list[Any]:
    """The answers to inputs that are given in another order, in the inputs' own."""
    places = list(range(len(inputs)))
    if order == "reversed":
        places.reverse()
    elif order == "shuffled":
        random.Random(0).shuffle(places)
    answers: dict[int, Any] = dict(zip(places, answer([inputs[place] for place in places]), strict=True))
    return [answers[place] for place in range(len(inputs))]
