"""Every change that we make to lmms-eval at run time: what, for which versions, and when it can go.

Nothing heavy is imported here: `include_tasks` runs whenever lmms-eval's tasks are imported. The log filter
is `truthgate_eval.harness.quiet.quiet_harness_run`.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Iterator
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
    """Wrap `lmms_eval.evaluator.evaluate`, once, so that results carry what a gated model says of itself.

    lmms-eval 0.7.3 has no place for that: `config` of its results holds the command line's text only (a
    comment in its source says that `get_model_info` is still to come). `evaluate` is the one function that
    has a model and its results together. A gated model's results get its `gate` and `model_info` at their
    top level, and thereby the results file does; the runs of other models are left as they are. This can go
    when lmms-eval writes `get_model_info` into its results.
    """
    from lmms_eval import evaluator

    original = evaluator.evaluate
    if hasattr(original, "_truthgate"):
        return

    @functools.wraps(original)
    def evaluate(*args: Any, **options: Any) -> Any:
        model: Any = options.get("lm", args[0] if args else None)
        settings = getattr(model, "gate_settings", None)
        if settings is None:
            return original(*args, **options)
        if settings.scores is not None and options.get("response_cache") is not None:
            log.warning(
                "--use_cache keys on the text of model_args: once scores=%s is rewritten, use another cache",
                settings.source,
            )
        with keep_loss_pairs(evaluator):
            results = original(*args, **options)
        if results is not None:
            results.update(model.get_model_info())
        return results

    evaluate._truthgate = True  # type: ignore[attr-defined]
    evaluator.evaluate = evaluate


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
