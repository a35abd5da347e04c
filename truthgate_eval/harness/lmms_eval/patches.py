"""Every change that we make to lmms-eval at run time: what, for which versions, and when it can go.

Nothing heavy is imported here: `include_tasks` runs whenever lmms-eval's tasks are imported. The log filter
is `truthgate_eval.harness.quiet.quiet_harness_run`.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from truthgate_eval.harness.task_folder import add_task_folder
from truthgate_eval.paths import shipped

log = logging.getLogger(__name__)


def include_tasks() -> None:
    """Let `lmms_eval.tasks.TaskManager` find our task files without `--include_path`.

    Needed with every release up to 0.7.3. Its environment variable `LMMS_EVAL_PLUGINS` finds a package's
    tasks, but each user would have to set it. This can go when lmms-eval reads task folders from entry
    points, as it reads models.
    """
    manager = sys.modules["lmms_eval.tasks"].TaskManager
    add_task_folder(manager, shipped("tasks") / "lmms_eval", last=True)


def install_evaluate_patch() -> None:
    """Wrap `lmms_eval.evaluator.evaluate`, once, for what lmms-eval 0.7.3 asks no model about.

    A gated model's run is changed in five ways, the runs of other models in none:

    * The model is told that a run begins, and finds a strength that is given as a divergence anew; with a
      response cache it keeps that of a run before.
    * Its results get its `gate` and `model_info` at their top level, and thereby the results file does:
      lmms-eval records the command line's text only (a comment in its source says that `get_model_info` is
      still to come).
    * The response cache (`--use_cache`) is asked with keys that see model, gate and images.
    * The cache of prompts (`--cache_requests`) is not used: it keeps no functions, so that a request from it
      has lost its images, and its key is the task's name.
    * The text of `--system_instruction` becomes a system message. lmms-eval puts it before each question in
      the user's message, with nothing between the two.

    `evaluate` is the one function that has all of these together. Each change can go when lmms-eval does it:
    writes `get_model_info`, asks the model for a fingerprint, keys on documents and keeps their images, and
    hands a system instruction over as such.
    """
    from lmms_eval import evaluator

    original = evaluator.evaluate
    if hasattr(original, "_truthgate"):
        return

    @functools.wraps(original)
    def evaluate(*args: Any, **options: Any) -> Any:
        call = inspect.signature(original).bind(*args, **options)
        given: dict[str, Any] = call.arguments
        model: Any = given.get("lm")
        if getattr(model, "gate_settings", None) is None:
            return original(*args, **options)
        if given.get("cache_requests"):
            log.warning("--cache_requests of lmms-eval loses a request's images: all requests are built anew")
            given["cache_requests"] = False
        text = given.pop("system_instruction", None)
        with model.system_instruction_of_run(text), keep_loss_pairs(evaluator):
            return _evaluate_gated(original, call, model)

    evaluate._truthgate = True  # type: ignore[attr-defined]
    evaluator.evaluate = evaluate


def _evaluate_gated(original: Callable[..., Any], call: inspect.BoundArguments, model: Any) -> Any:
    """A gated model's run: its answer cache, its images looked at first, its entries in the results."""
    from truthgate_eval.harness.lmms_eval.requests import leaf_tasks

    given: dict[str, Any] = call.arguments
    tasks = [task for _, task in leaf_tasks(given["task_dict"])]
    model.check_contrast((task.config.task, task.OUTPUT_TYPE) for task in tasks)
    if given.get("response_cache") is None:
        model.start_run()
    else:
        from truthgate_eval.harness.lmms_eval.response_cache import KeyedResponseCache

        given["response_cache"] = KeyedResponseCache(given["response_cache"], model)
    with model.check_images_of_run(tasks):
        results = original(*call.args, **call.kwargs)
    if results is not None:
        results.update(model.get_model_info())
    return results


@contextmanager
def keep_loss_pairs(evaluator: ModuleType) -> Iterator[None]:
    """Let (loss, greedy) pairs reach the task as they are while a gated model runs.

    lmms-eval 0.7.3 makes a text of every answer (`unwrap_generation_output`), these pairs included, so that
    no multiple-choice task can be scored. Releases without that function need no patch, and none is made.

    Args:
        evaluator: The module `lmms_eval.evaluator`.
    """
    original = getattr(evaluator, "unwrap_generation_output", None)
    if original is None:
        yield
        return

    def unwrap(output: Any) -> Any:
        # A list where the pair comes from lmms-eval's response cache, which is JSON.
        if isinstance(output, list | tuple) and len(output) == 2 and isinstance(output[0], float):
            return tuple(output), None
        return original(output)

    evaluator.unwrap_generation_output = unwrap  # type: ignore[attr-defined]
    try:
        yield
    finally:
        evaluator.unwrap_generation_output = original  # type: ignore[attr-defined]
