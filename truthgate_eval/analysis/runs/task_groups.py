"""Which leaderboards a run's tasks make, and which of their parts: `halueval` has qa, dialogue and so on.

A group is one leaderboard, its members are its parts, and their plain mean is the last one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from truthgate_eval.analysis.runs.run import Run
from truthgate_eval.metrics.pope import SOURCES

MEAN = "mean"


@dataclass(frozen=True)
class TaskGroup:
    """A leaderboard to be made.

    Attributes:
        name: The group's name, or the task's where it stands alone.
        parts: The tasks whose plain mean each part is, by the part's name.
    """

    name: str
    parts: dict[str, tuple[str, ...]]


def task_groups(run: Run) -> list[TaskGroup]:
    """The leaderboards that a run's tasks make, in the order of its groups."""
    groups = {name: members for name, members in run.groups.items() if _leaves(name, run.groups, run)}
    inner = {member for members in groups.values() for member in members}
    tops = [name for name in (*groups, *_plain(run)) if name not in inner]
    sources = [f"pope_{source}" for source in SOURCES if f"pope_{source}" in tops]
    if len(sources) > 1:  # as one run of pope_all: the paper's table has the sources side by side
        groups["pope_all"] = tuple(sources)
        tops = [*(name for name in tops if name not in sources), "pope_all"]
    return [_plan(name, groups, run) for name in tops]


def _plain(run: Run) -> Iterator[str]:
    """The names of tasks without their filters."""
    yield from dict.fromkeys(name.partition(",")[0] for name in run.tasks)


def _plan(name: str, groups: Mapping[str, tuple[str, ...]], run: Run) -> TaskGroup:
    children = [child for child in groups.get(name, ()) if _leaves(child, groups, run)]
    if not children:
        leaves = _leaves(name, groups, run)
        return TaskGroup(name, {leaf: (leaf,) for leaf in leaves})
    prefix = f"{name.removesuffix('_all')}_"
    parts = {child.removeprefix(prefix): _leaves(child, groups, run) for child in children}
    if len(parts) > 1:
        parts[MEAN] = _leaves(name, groups, run)
    return TaskGroup(name, parts)


def _leaves(name: str, groups: Mapping[str, tuple[str, ...]], run: Run) -> tuple[str, ...]:
    """The tasks, each with its filter, that a group or task comes down to."""
    if name in groups:
        below = [leaf for member in groups[name] for leaf in _leaves(member, groups, run)]
        return tuple(dict.fromkeys(below))
    return tuple(task for task in run.tasks if task.partition(",")[0] == name)
