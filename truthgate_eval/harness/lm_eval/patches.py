"""Every change that we make to lm-eval at run time: what, for which versions, and when it can go.

Nothing heavy is imported here: the hooks run whenever lm-eval is imported.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from truthgate_eval.errors import TruthGateError, one_line
from truthgate_eval.harness.command_line import is_command_line
from truthgate_eval.harness.task_folder import add_task_folder
from truthgate_eval.paths import shipped

MODELS = {
    "gated_hf": "truthgate_eval.harness.lm_eval.model:GatedHF",
    "gated_vllm": "truthgate_eval.harness.lm_eval.vllm_model:GatedVLLM",
}


def register_models() -> None:
    """Add our models to lm-eval's registry, as lazy names: no module of ours is imported yet.

    Needed with lm-eval 0.4.13, which does not read the entry points of the group `lm_eval.models`. Its pull
    request #4013 does: with a release that has it, this function finds the names registered and changes
    nothing, and it can go once that release is the oldest that we support.
    """
    from lm_eval.api.registry import model_registry

    for name, target in MODELS.items():
        if name not in model_registry:
            model_registry.register(name, target=target)


def include_tasks() -> None:
    """Let `lm_eval.tasks.manager.TaskManager` find our task files without `--include_path`.

    Needed with every release up to 0.4.13, which finds task files of other packages only by `include_path`
    (pull request #4013 registers models alone). It can go when lm-eval reads task folders from entry points.
    """
    manager = sys.modules["lm_eval.tasks.manager"].TaskManager
    add_task_folder(manager, shipped("tasks") / "lm_eval", last=False)


def install_one_line_errors() -> None:
    """On lm-eval's command line, print our errors as one line instead of a traceback.

    lm-eval has no hook for errors of models, in any release, so the process's `sys.excepthook` is replaced.
    A library's user and every other program keep theirs. It can go when lm-eval prints users' errors itself.
    """
    if not is_command_line("lm_eval"):
        return
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, TruthGateError):
            sys.stderr.write(f"error: {one_line(error)}\n")
        else:
            previous(kind, error, trace)

    sys.excepthook = hook


def install_evaluate_patch() -> None:
    """Wrap `lm_eval.evaluator.evaluate`, once, for a gated model's strength, its contrast and cached prompts.

    A model whose strength is given as a divergence finds it on each run's requests, and lm-eval tells no
    model that a run begins. One that answers from a cache has the strength of a run before.

    A model with a contrast is told the tasks of the run: lm-eval's requests do not say which part of a
    document is its context. This can go when they do.

    lm-eval 0.4.13 keys its cache of prompts (`--cache_requests`) on the task's name and little else, and
    gives a model no say in it. The tasks of a gated model's run get the keys that our own tasks have by their
    class (`request_cache`); other models' runs are left as they are. This can go when lm-eval's key has the
    documents and the generation settings.

    A gated model's run in several processes gives the samples of one (`process_shares`).
    """
    from lm_eval import evaluator

    original = evaluator.evaluate
    if hasattr(original, "_truthgate"):
        return

    @functools.wraps(original)
    def evaluate(*args: Any, **options: Any) -> Any:
        call = inspect.signature(original).bind(*args, **options).arguments
        is_gated = hasattr(call.get("lm"), "gate_settings")
        if is_gated and not hasattr(call["lm"], "cache_db"):
            call["lm"].start_run()
        if is_gated and call["lm"].contrast is not None:
            call["lm"].contrast.start_run(_leaf_tasks(call["task_dict"]))
        if is_gated and call.get("cache_requests"):
            from truthgate_eval.harness.lm_eval import request_cache

            for task in _leaf_tasks(call["task_dict"]):
                request_cache.install_keys(task)
        if is_gated:
            from truthgate_eval.harness.lm_eval import process_shares

            process_shares.prepare_tasks(_leaf_tasks(call["task_dict"]), call["lm"])
        return original(*args, **options)

    evaluate._truthgate = True  # type: ignore[attr-defined]
    evaluator.evaluate = evaluate


def _leaf_tasks(task_dict: Mapping[Any, Any]) -> Iterator[Any]:
    """The tasks in what `evaluate` takes, at any depth."""
    for value in task_dict.values():
        if isinstance(value, Mapping):
            yield from _leaf_tasks(value)
        elif hasattr(value, "build_all_requests"):
            yield value
