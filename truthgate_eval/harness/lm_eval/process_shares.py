"""Runs of lm-eval in several processes that give the samples and the results of one process.

lm-eval deals a task's documents out to the processes in turn. Each draws few-shot examples for its own
documents only, so that they depend on the number of processes. The last request of a process with fewer
documents than another is answered several times, and each answer stays in the samples. What the processes
have is put one after the other, and bootstrapped standard errors depend on that order.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lm_eval.api.task import Task

from truthgate_eval.errors import TaskError

_MISSING = object()


def prepare_tasks(tasks: Iterable[Task], lm: Any) -> None:
    """Let the tasks of a run in several processes have the requests and the answers of one.

    Args:
        tasks: The run's tasks.
        lm: The model, which has its `rank`, `world_size` and `barrier`.
    """
    if lm.world_size <= 1:
        return
    for task in tasks:
        build = task.build_all_requests
        if getattr(task.config, "num_fewshot", None):
            build = functools.partial(_build_own_requests, task, build, lm)
        task.build_all_requests = functools.partial(_build_for_each, task, build)
        task.apply_filters = functools.partial(_apply_filters, task, task.apply_filters)


def merge_in_order(parts: Sequence[Any]) -> list[Any]:
    """What lm-eval gathers from the processes, as a single part in the order of one process.

    Args:
        parts: For each process, samples or values of metrics by the task's name.

    Returns:
        One part, or the given ones if they are neither.

    Example:
        >>> merge_in_order([{"task": {("acc", "none"): [0, 2]}}, {"task": {("acc", "none"): [1]}}])
        [{'task': {('acc', 'none'): [0, 1, 2]}}]
    """
    if not all(isinstance(part, Mapping) for part in parts):
        return list(parts)
    merged: dict[str, Any] = {}
    for name in parts[0]:
        of_task = [part.get(name) for part in parts]
        if all(isinstance(values, Mapping) for values in of_task):
            merged[name] = _merge(of_task)
        elif all(isinstance(samples, list) for samples in of_task):
            by_filter = [_by_filter(samples) for samples in of_task]
            merged[name] = list(itertools.chain.from_iterable(_merge(by_filter).values()))
        else:
            return list(parts)
    return [merged]


def _merge(parts: Sequence[Mapping[Any, Sequence[Any]]]) -> dict[Any, list[Any]]:
    """For each key the values of all parts, one of each in turn."""
    keys = dict.fromkeys(key for part in parts for key in part)
    return {
        key: [
            value
            for turn in itertools.zip_longest(*(part.get(key, ()) for part in parts), fillvalue=_MISSING)
            for value in turn
            if value is not _MISSING
        ]
        for key in keys
    }


def _by_filter(samples: Iterable[Mapping[str, Any]]) -> dict[Any, list[Any]]:
    found: dict[Any, list[Any]] = {}
    for sample in samples:
        found.setdefault(sample.get("filter"), []).append(sample)
    return found


def _build_for_each(task: Task, build: Callable[..., None], *, world_size: int = 1, **options: Any) -> None:
    """Build requests if every process has a document: one without any ends alone, and the others wait."""
    number = sum(1 for _ in task.doc_iterator(rank=0, world_size=1, **_chosen_documents(options)))
    if number < world_size:
        name = getattr(task.config, "task", task)
        raise TaskError(f"{name}: {number} documents are fewer than the {world_size} processes: start fewer")
    build(world_size=world_size, **options)


def _chosen_documents(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("limit", "samples") if name in options}


def _build_own_requests(
    task: Task,
    build: Callable[..., None],
    lm: Any,
    *,
    rank: int = 0,
    world_size: int = 1,
    cache_requests: bool = False,
    **options: Any,
) -> None:
    """Build the requests of all documents, with the examples that one process draws, and keep one's own."""
    if cache_requests and rank:  # the first process fills the cache that the others read
        lm.barrier()
    build(rank=0, world_size=1, cache_requests=cache_requests, **options)
    if cache_requests and not rank:
        lm.barrier()
    documents = task.doc_iterator(rank=rank, world_size=world_size, **_chosen_documents(options))
    own = {doc_id for doc_id, _ in documents}
    task._instances = [instance for instance in task.instances if instance.doc_id in own]


def _apply_filters(task: Task, apply: Callable[[], Any]) -> Any:
    """Read the answers without those that only keep processes at an equal number of requests."""
    for instance in task.instances:
        del instance.resps[instance.repeats :]
    return apply()
