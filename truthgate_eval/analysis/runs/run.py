"""A run of lm-eval or lmms-eval, read back: its tasks, one result per document, its gate and its environment.

A run is what `--log_samples --output_path DIR` wrote: one results file, and a file of samples for each task
(`docs/harnesses.md#results-files`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truthgate_eval.analysis.runs.results_files import (
    Harness,
    RunError,
    find_results_file,
    harness_of,
    read_results,
    recorded_gate,
    samples_file,
)
from truthgate_eval.analysis.runs.samples import SampleResult, read_samples
from truthgate_eval.errors import DataError


@dataclass(frozen=True)
class TaskRun:
    """One task of a run, as one of its filters reads the answers.

    Attributes:
        task: The task's name.
        filter: The filter of lm-eval, "none" elsewhere.
        samples: The samples, by a key that equal documents share between runs.
        settings: What determines the verdicts: version, few-shot examples, parser, names of objects.
    """

    task: str
    filter: str
    samples: dict[str, SampleResult]
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """The task's name, followed by its filter unless that is "none"."""
        return self.task if self.filter == "none" else f"{self.task},{self.filter}"


@dataclass(frozen=True)
class Run:
    """One evaluation of one model.

    Attributes:
        path: As the user gave it.
        file: The results file that was read.
        harness: `lm-eval` or `lmms-eval`.
        model: The evaluated model's name or folder.
        gate: The gate as `GateConfig.describe` recorded it; None where a model of the harness itself ran.
        tasks: The task runs by name.
        groups: The members of each group, which are tasks or groups.
        environment: What comparable runs share (dtype, versions, ...); None where it is not recorded.
        notes: What a reader should know about how the run was read.
    """

    path: Path
    file: Path
    harness: Harness
    model: str
    gate: dict[str, Any] | None
    tasks: dict[str, TaskRun]
    groups: dict[str, tuple[str, ...]]
    environment: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def folder_name(self) -> str:
        """The name of the folder, or of the results file, that the user gave."""
        return self.path.resolve().name

    def task_run_names(self, task: str) -> tuple[str, ...]:
        """The names of a task's runs, one for each filter; empty if the run does not have the task."""
        return tuple(name for name, run in self.tasks.items() if run.task == task)


def read_run(path: str | Path) -> Run:
    """Read a folder that a harness wrote into, or one results file.

    Raises:
        RunError: There is no results file, or no samples beside it.
        DataError: A file is damaged; the message names the line.
    """
    path = Path(path)
    file, notes = find_results_file(path)
    results = read_results(file)
    harness = harness_of(results)
    tasks: dict[str, TaskRun] = {}
    for name, config in results["configs"].items():
        found = _read_task(file, harness, name, config if isinstance(config, Mapping) else {}, results)
        if not found:
            notes.append(f"{path}: task {name} does not mark each document right or wrong: left out")
        tasks |= {task.name: task for task in found}
    if not tasks:
        raise RunError(
            f"{path}: none of its tasks marks each document right or wrong, so there is nothing to compare"
        )
    groups = results.get("group_subtasks") or {}
    return Run(
        path=path,
        file=file,
        harness=harness,
        model=_model(results),
        gate=recorded_gate(results, file),
        tasks=tasks,
        groups={name: tuple(members) for name, members in groups.items() if members},
        environment=_environment(results, harness),
        notes=tuple(notes),
    )


def _read_task(
    file: Path, harness: Harness, name: str, config: Mapping[str, Any], results: Mapping[str, Any]
) -> list[TaskRun]:
    """A task's samples, one `TaskRun` per filter; none if the task has no verdict for each document."""
    path = samples_file(file, harness, name)
    if not path.is_file():
        raise RunError(f"there is no {path.name} beside {file}: run again with --log_samples")
    samples = read_samples(path, config, system_instruction=str(results.get("system_instruction") or ""))
    expected = ((results.get("n-samples") or {}).get(name) or {}).get("effective")
    metadata = config.get("metadata")
    settings = {
        "task version": (results.get("versions") or {}).get(name),
        "few-shot examples": (results.get("n-shot") or {}).get(name),
        # Tasks of lmms-eval have a list there.
        "parser": metadata.get("parser") if isinstance(metadata, Mapping) else None,
        "names of objects": metadata.get("objects") if isinstance(metadata, Mapping) else None,
        "generation settings": config.get("generation_kwargs"),
    }
    tasks = []
    for filter_name in dict.fromkeys(sample.filter for sample in samples):
        own = [sample for sample in samples if sample.filter == filter_name]
        if expected is not None and len(own) != expected:
            raise DataError(
                f"{path} ends at line {len(samples)} with {len(own)} documents, but the results file "
                f"counts {expected}: the file is cut off, run again"
            )
        tasks.append(TaskRun(name, filter_name, _by_document(own), settings))
    if not samples and expected and not path.stat().st_size:
        raise DataError(f"{path} is empty, but the results file counts {expected} documents: run again")
    return tasks


def _by_document(samples: list[SampleResult]) -> dict[str, SampleResult]:
    """Samples by the identity of their document, numbered where a document occurs more than once."""
    times: Counter[str] = Counter()
    keyed = {}
    for sample in samples:
        keyed[f"{sample.identity}#{times[sample.identity]}"] = sample
        times[sample.identity] += 1
    return keyed


def _model(results: Mapping[str, Any]) -> str:
    """The evaluated model as it describes itself, else as the command line names it."""
    config, info = results["config"], results.get("model_info") or {}
    named = config.get("model_name") or info.get("pretrained") or _argument(config, "pretrained")
    return str(named or results.get("model_name") or config.get("model") or "unknown model")


def _argument(config: Mapping[str, Any], name: str) -> Any:
    """One of the harness's model_args: a mapping in lm-eval, a text in lmms-eval."""
    arguments = config.get("model_args")
    if isinstance(arguments, Mapping):
        return arguments.get(name)
    pairs = (pair.partition("=") for pair in str(arguments or "").split(","))
    return next((value for key, _, value in pairs if key.strip() == name), None)


def _environment(results: Mapping[str, Any], harness: Harness) -> dict[str, Any]:
    config, info = results["config"], results.get("model_info") or {}
    torch = re.search(r"PyTorch version: (\S+)", str(results.get("pretty_env_info", "")))
    template = results.get("chat_template") or info.get("chat_template")
    versions = info.get("versions") or {}  # of a gated run under lmms-eval, which records none itself
    version = str(results.get("lm_eval_version" if harness == "lm-eval" else "lmms_eval_version") or "")
    return {
        "evaluated model": _model(results),
        "revision": config.get("model_sha") or info.get("sha"),
        "adapter": info.get("peft") or _argument(config, "peft"),
        "dtype": config.get("model_dtype") or info.get("dtype"),
        "batch size": info.get("batch_size") or config.get("batch_size"),
        "chat template": results.get("chat_template_sha") or template,
        "system instruction": results.get("system_instruction") or info.get("system_instruction"),
        "few-shot as a conversation": bool(results.get("fewshot_as_multiturn")),
        # In a git checkout, lmms-eval writes that checkout's branch@commit instead of its version.
        f"{harness} version": version if version and "@" not in version else versions.get("lmms_eval"),
        "transformers version": results.get("transformers_version") or versions.get("transformers"),
        "torch version": torch[1] if torch else versions.get("torch"),
        "generation settings": config.get("gen_kwargs") or None,
    }
