"""lm-eval's tasks by their names: which there are, and how they are loaded."""

from __future__ import annotations

import difflib
import functools
import json
from typing import Any

from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from truthgate_eval.errors import TaskError


def task_manager(metadata: dict[str, Any] | None, include_path: str | None = None) -> TaskManager:
    """lm-eval's tasks, ours and those of `include_path`, with this metadata.

    Cached for the process, since lm-eval reads thousands of task files, which takes seconds.
    """
    return _task_manager(json.dumps(metadata or {}, sort_keys=True, default=str), include_path)


@functools.lru_cache(maxsize=4)
def _task_manager(metadata: str, include_path: str | None) -> TaskManager:
    return TaskManager(metadata=json.loads(metadata), include_path=include_path)


def has_tasks(names: list[str], metadata: dict[str, Any] | None, *, include_path: str | None = None) -> bool:
    """Whether lm-eval has a task, group or tag of each name, with our tasks and those of `include_path`."""
    return set(names) <= set(task_manager(metadata, include_path).all_tasks)


def load_tasks(
    names: list[str], metadata: dict[str, Any], *, include_path: str | None = None
) -> dict[str, Task]:
    """The leaf tasks of these names, as lm-eval loads them.

    Raises:
        TaskError: A name is unknown; the message offers the nearest ones.
    """
    manager = task_manager(metadata, include_path)
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else "`lm_eval ls tasks` lists them all"
            raise TaskError(f"lm-eval has no task {name!r}: {hint}")
    return dict(manager.load(names)["tasks"])
