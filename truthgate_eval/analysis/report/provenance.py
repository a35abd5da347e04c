"""The provenance of a run: model, gate, versions, date, and the command as far as it is recorded."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from truthgate_eval.analysis.runs.methods import RunEntry, describe_gate
from truthgate_eval.analysis.runs.results_files import read_results
from truthgate_eval.analysis.runs.task_groups import task_groups
from truthgate_eval.credentials import mask_credentials

# Options of both command lines that results files have under `config`. The device is left out: lm-eval
# writes cuda:0 there even for a run on the CPU.
_OPTIONS = ("limit", "batch_size", "gen_kwargs")


def provenance(entry: RunEntry) -> dict[str, Any]:
    """A run's name, method, model, gate, environment, date, command and results file; credentials masked."""
    run = entry.run
    results = read_results(run.file)
    found: dict[str, Any] = mask_credentials({
        "name": entry.name,
        "label": entry.label,
        "kind": entry.method,
        "host": run.harness,
        "model": run.model,
        "gate": run.gate,
        "gate_in_words": describe_gate(run),
        "date": date_of(results),
        "command": command_of(entry, results),
        "facts": {name: value for name, value in run.environment.items() if value is not None},
        "versions": (results.get("model_info") or {}).get("versions") or {},
        "file": str(run.file),
        "notes": list(run.notes),
    })  # fmt: skip
    return found


def date_of(results: Mapping[str, Any]) -> str | None:
    """The date of a run: lm-eval records seconds since 1970, lmms-eval a time without a zone.

    Example:
        >>> date_of({"date": "20261124_081836"})
        '2026-11-24 08:18:36'
    """
    date = results.get("date")
    try:
        if isinstance(date, int | float):
            return datetime.fromtimestamp(date, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        return datetime.strptime(str(date), "%Y%m%d_%H%M%S").strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # no date, or none that a calendar has
        return str(date) if date else None


def command_of(entry: RunEntry, results: Mapping[str, Any]) -> str:
    """The command line of a run, assembled from what the results file records."""
    config, run = results["config"], entry.run
    arguments = config.get("model_args") or ""
    if isinstance(arguments, Mapping):
        arguments = ",".join(f"{name}={value}" for name, value in arguments.items())
    tasks = ",".join(group.name for group in task_groups(run))
    words = [run.harness.replace("-", "_"), "--model", str(config.get("model"))]
    words += ["--model_args", str(arguments)] if arguments else []
    words += ["--tasks", tasks]
    for name in _OPTIONS:
        value = config.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, str | int) and value != "":
            words += [f"--{name}", str(value)]
    return shlex.join(words)
