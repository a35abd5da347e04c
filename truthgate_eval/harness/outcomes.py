"""A metric out of either host's results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from truthgate_eval.errors import TaskError
from truthgate_eval.gating.sweep import EvalResult


def eval_result(
    results: Mapping[str, Mapping[str, Any]], counts: Mapping[str, int], metric: str
) -> EvalResult:
    """The mean of a metric over tasks, each weighing the same, as in the paper's means over POPE's splits.

    Args:
        results: The host's `results`: metrics by task, their names with a filter after a comma.
        counts: Documents of each task that counts.
        metric: The metric's name.

    Raises:
        TaskError: A task has no such metric.
    """
    values, errors = [], []
    for task in counts:
        found = {key.split(",")[0]: value for key, value in results[task].items()}
        if not isinstance(found.get(metric), int | float):
            known = sorted(
                key for key, value in found.items() if isinstance(value, float) and "_stderr" not in key
            )
            raise TaskError(f"task {task!r} has no metric {metric!r}: it has {', '.join(known)}")
        values.append(float(found[metric]))
        # lmms-eval's error by clusters counts questions about one picture as the related ones they are.
        clustered = found.get(f"{metric}_stderr_clustered")
        errors.append(clustered if isinstance(clustered, float) else found.get(f"{metric}_stderr"))
    known_errors = [float(error) for error in errors if isinstance(error, int | float)]
    complete = len(known_errors) == len(values)
    stderr = math.sqrt(sum(error**2 for error in known_errors)) / len(values) if complete else None
    return EvalResult(sum(values) / len(values), stderr, sum(counts.values()))
