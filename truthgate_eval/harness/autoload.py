"""What happens when a host is imported: our models and tasks become part of it.

Called by `startup/_truthgate_autoload.py`. Each hook does nothing where the host has found
us by itself, as lm-eval's next release does for models (its PR #4013).
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from truthgate_eval.errors import TruthGateError
from truthgate_eval.paths import shipped

LM_EVAL_MODELS = {"gated_hf": "truthgate_eval.harness.lm_eval.model:GatedHF"}


def on_import(module: str) -> None:
    """Run the hook of a host's module that has just been loaded."""
    if module == "lm_eval.models":
        register_models()
    elif module == "lm_eval.tasks.manager":
        add_tasks(module, "lm_eval", last=False)
    elif module == "lmms_eval.tasks":
        add_tasks(module, "lmms_eval", last=True)


def register_models() -> None:
    """Add our models to lm-eval's registry, as lazy names: nothing of ours is imported yet."""
    from lm_eval.api.registry import model_registry

    for name, target in LM_EVAL_MODELS.items():
        if name not in model_registry:
            model_registry.register(name, target=target)
    install_one_line_errors()


def add_tasks(module: str, harness: str, *, last: bool) -> None:
    """Let a host's TaskManager look into our task folder too.

    Args:
        module: The host's module that holds `TaskManager`.
        host: The name of our folder below `tasks/`.
        last: Where our folder stands in `include_path`. The user's own tasks must win over
            ours: later paths win in lm-eval, the first wins in lmms-eval.
    """
    folder = shipped("tasks") / harness
    manager = sys.modules[module].TaskManager
    if not folder.is_dir() or hasattr(manager.__init__, "_truthgate"):
        return
    manager.__init__ = _with_folder(manager.__init__, folder, last=last)


def _with_folder(init: Callable[..., None], folder: Path, *, last: bool) -> Callable[..., None]:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapped(*args: Any, **options: Any) -> None:
        call = signature.bind(*args, **options)
        call.apply_defaults()
        if call.arguments["include_defaults"]:
            given = call.arguments["include_path"]
            theirs = list(given) if isinstance(given, list | tuple) else [given] if given else []
            paths = [*theirs, str(folder)] if last else [str(folder), *theirs]
            call.arguments["include_path"] = paths
        init(*call.args, **call.kwargs)

    wrapped._truthgate = True  # type: ignore[attr-defined]
    return wrapped


def install_one_line_errors() -> None:
    """On a host's command line, print our errors as one line instead of a traceback.

    A library's user gets the ordinary exception; only the program's last resort changes.
    """
    program = os.path.join(*Path(sys.argv[0]).parts[-2:]) if sys.argv and sys.argv[0] else ""
    if not any(name in program for name in ("lm_eval", "lm-eval", "lmms_eval", "lmms-eval")):
        return
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, TruthGateError):
            sys.stderr.write(f"error: {error}\n")
        else:
            previous(kind, error, trace)

    sys.excepthook = hook
