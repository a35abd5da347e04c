"""Judge many gates through lm-eval with one load of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import lm_eval

from truthgate_eval.anatomy import find_anatomy
from truthgate_eval.assets import SMALL_MODEL
from truthgate_eval.errors import TaskError
from truthgate_eval.gate import attach, make_gate
from truthgate_eval.hosts.lm_eval_probing import load_lm, load_tasks
from truthgate_eval.scores import TruthScores
from truthgate_eval.sweep import Point


def run_sweep(
    artifact: TruthScores,
    name: str,
    grid: Sequence[Point],
    *,
    task: str,
    metric: str,
    model_args: dict[str, Any],
    limit: int | None = None,
    batch_size: int = 8,
    device: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Point]:
    """The grid with its values, in the same order.

    The documents are the selection fifth of the task, without the rows that made the scores.

    Args:
        artifact: The scores.
        name: The artifact's name or path, from which the task reads the rows to leave out.
        grid: The settings to judge.
        task: An lm-eval task that knows `subset` and `exclude_rows_of`.
        metric: One of the task's metrics.
        model_args: As on lm-eval's command line; no `pretrained` takes the packaged model.
        limit: Documents per setting.
        batch_size: Documents to a batch.
        device: As on lm-eval's command line.
        progress: Called with 1 after each setting.

    Raises:
        TaskError: The task is unknown or has no such metric.
        ScoresError: The scores do not fit the model.
    """
    metadata = {"subset": "selection", "exclude_rows_of": name}
    load_tasks([task], metadata)
    lm = load_lm("hf", {"pretrained": SMALL_MODEL, **model_args}, batch_size=batch_size, device=device)
    anatomy = find_anatomy(lm.model)
    artifact.check_fits(anatomy.shape, str(lm.pretrained))
    points = []
    for point in grid:
        gate = make_gate(artifact, lam=point.lam, norm=point.norm, site=point.site)
        with attach(lm.model, gate, anatomy=anatomy):
            value, documents = _evaluate(lm, task, metric, metadata, limit)
        points.append(dataclasses.replace(point, value=value, documents=documents))
        if progress is not None:
            progress(1)
    return points


def _evaluate(
    lm: Any, task: str, metric: str, metadata: dict[str, Any], limit: int | None
) -> tuple[float, int]:
    """(metric, number of documents) of one lm-eval run."""
    run = lm_eval.simple_evaluate(
        model=lm, tasks=[task], limit=limit, metadata=metadata, log_samples=False, bootstrap_iters=0
    )
    if run is None:
        raise TaskError("a sweep runs in one process; start it without accelerate launch")
    values = {key.split(",")[0]: value for key, value in run["results"][task].items()}
    if not isinstance(values.get(metric), float):
        known = ", ".join(sorted(key for key, value in values.items() if isinstance(value, float)))
        raise TaskError(f"task {task!r} has no metric {metric!r}: it has {known}")
    return values[metric], run["n-samples"][task]["effective"]
