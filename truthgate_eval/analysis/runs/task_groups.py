"""Which leaderboards a run's tasks make, and the parts of each: `halueval` has qa, dialogue and so on.

A group of tasks makes one leaderboard. Its members are the parts, and the plain mean over its tasks is the
last part. A task with more than one filter has one part for each filter: filters read the same answers, so
they are never averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from truthgate_eval.analysis.runs.run import Run
from truthgate_eval.metrics.pope import SOURCES

MEAN = "mean"
LOG_ODDS_SUFFIX = "_logodds"


@dataclass(frozen=True)
class TaskGroup:
    """The tasks of one leaderboard.

    Attributes:
        name: The group's name, or the task's if it belongs to no group.
        parts: By part, the names of the task runs over which the part is the plain mean.
    """

    name: str
    parts: dict[str, tuple[str, ...]]


def task_groups(run: Run) -> list[TaskGroup]:
    """The groups that a run's tasks make, in the order of the results file."""
    groups = {name: members for name, members in run.groups.items() if _tasks_below(name, run.groups, run)}
    members = {member for names in groups.values() for member in names}
    tasks = dict.fromkeys(task.task for task in run.tasks.values())
    tops = [name for name in dict.fromkeys((*groups, *tasks)) if name not in members]
    sources = [f"pope_{source}" for source in SOURCES if f"pope_{source}" in tops]
    if len(sources) > 1:  # like a run of pope_all: the paper's table has the sources side by side
        groups["pope_all"] = tuple(sources)
        tops = [*(name for name in tops if name not in sources), "pope_all"]
    return [_make_group(name, groups, run) for name in tops]


def _make_group(name: str, groups: Mapping[str, tuple[str, ...]], run: Run) -> TaskGroup:
    members = [member for member in groups.get(name, ()) if _tasks_below(member, groups, run)]
    if not members:
        return TaskGroup(name, {task: (task,) for task in run.task_run_names(name)})
    # Of a group whose tasks read log-odds, `scenes_logodds`, a member is `scenes_random_logodds`.
    end = LOG_ODDS_SUFFIX if name.endswith(LOG_ODDS_SUFFIX) else ""
    prefix = f"{name.removesuffix(end).removesuffix('_all')}_"
    parts: dict[str, tuple[str, ...]] = {}
    for member in members:
        tasks = _tasks_below(member, groups, run)
        own = _parts(member.removesuffix(end).removeprefix(prefix), tasks, run)
        # A subgroup whose tasks share no filter has no mean: its tasks are parts.
        parts |= own or {name: (name,) for task in tasks for name in run.task_run_names(task)}
    if len(members) > 1:
        parts |= _parts(MEAN, _tasks_below(name, groups, run), run)
    return TaskGroup(name, parts)


def _parts(name: str, tasks: tuple[str, ...], run: Run) -> dict[str, tuple[str, ...]]:
    """The mean over tasks as a part, or as one part for each filter.

    Such a part has every task once: with that filter, or with the only filter that the task has.
    """
    names = {task: run.task_run_names(task) for task in tasks}
    filters = dict.fromkeys(run.tasks[name].filter for own in names.values() for name in own)
    parts = {}
    for chosen in filters:
        found = [
            name
            for own in names.values()
            for name in own
            if len(own) == 1 or run.tasks[name].filter == chosen
        ]
        if len(found) == len(tasks):
            parts[f"{name},{chosen}"] = tuple(found)
    different = set(parts.values())
    return {name: different.pop()} if len(different) == 1 else parts


def _tasks_below(name: str, groups: Mapping[str, tuple[str, ...]], run: Run) -> tuple[str, ...]:
    """The tasks, without their filters, that a group or task comes down to."""
    if name in groups:
        below = [task for member in groups[name] for task in _tasks_below(member, groups, run)]
        return tuple(dict.fromkeys(below))
    return (name,) if run.task_run_names(name) else ()
