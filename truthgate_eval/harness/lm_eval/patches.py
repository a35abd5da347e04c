"""Every change that we make to lm-eval at run time: what, for which versions, and when it can go.

Nothing heavy is imported here: the hooks run whenever lm-eval is imported.
"""

from __future__ import annotations

import sys
from types import TracebackType

from truthgate_eval.errors import TruthGateError, one_line
from truthgate_eval.harness.command_line import is_command_line
from truthgate_eval.harness.task_folder import add_task_folder
from truthgate_eval.paths import shipped

MODELS = {"gated_hf": "truthgate_eval.harness.lm_eval.model:GatedHF"}


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
