"""Adds our folder of task files to a harness's `TaskManager`; each harness's `patches` module uses it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_task_folder(manager: type[Any], folder: Path, *, last: bool) -> None:
    """Let a harness's `TaskManager` read our task files too; it does nothing the second time.

    A `TaskManager` made with `include_defaults=False` is left alone.

    Args:
        manager: The class, whose constructor takes `include_path` and `include_defaults`.
        folder: Our task files.
        last: Where our folder stands in `include_path`. The user's own tasks must win over
            ours: later paths win in lm-eval, the first wins in lmms-eval.
    """
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
