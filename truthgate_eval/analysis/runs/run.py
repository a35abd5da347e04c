"""A run of either host, read back: its tasks, one record a document, its gate and how it was made.

A run is what `--log_samples --output_path DIR` wrote: one results file and a sample file a task.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truthgate_eval.analysis.runs.samples import SampleResult, read_samples
from truthgate_eval.errors import DataError, TruthGateError


class RunError(TruthGateError):
    """A run cannot be read, or runs cannot be compared."""


@dataclass(frozen=True)
class TaskRun:
    """One task of a run.

    Attributes:
        name: The task's name, with its filter where that is not "none".
        records: The records by a key that equal documents share between runs.
        settings: What judges the answers: version, few-shot examples, parser.
    """

    name: str
    samples: dict[str, SampleResult]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One evaluation of one model.

    Attributes:
        path: As the user gave it.
        file: The results file that was read.
        host: `lm-eval` or `lmms-eval`.
        model: The evaluated model's name or folder.
        gate: What the model was gated with (`GateConfig.describe`); None where the host's own model ran.
        tasks: By name.
        groups: The members of each group, which are tasks or groups.
        facts: What two runs should have in common (dtype, versions, ...); None where it is not recorded.
        notes: What a reader should know about how the run was read.
    """

    path: Path
    file: Path
    harness: str
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


def read_run(path: str | Path) -> Run:
    """Read a folder that a host wrote into, or one results file.

    Raises:
        RunError: There is no results file, or no sample files beside it.
        DataError: A file is damaged; the message names the line.
    """
    path = Path(path)
    file, notes = _results_file(path)
    results = _read_json(file)
    host = "lmms-eval" if "lmms_eval_version" in results else "lm-eval"
    tasks: dict[str, TaskRun] = {}
    for name, config in results["configs"].items():
        read = _read_task(file, host, name, config if isinstance(config, Mapping) else {}, results)
        if not read:
            notes.append(f"{path}: task {name} has no verdict of right or wrong a document: left out")
        tasks |= {task.name: task for task in read}
    if not tasks:
        raise RunError(
            f"{path}: no task of it judges each answer right or wrong, so there is nothing to compare"
        )
    groups = results.get("group_subtasks") or {}
    return Run(
        path=path,
        file=file,
        harness=host,
        model=_model(results),
        gate=results.get("gate") or results["config"].get("gate"),
        tasks=tasks,
        groups={name: tuple(members) for name, members in groups.items() if members},
        environment=_facts(results, host),
        notes=tuple(notes),
    )


def _results_file(path: Path) -> tuple[Path, list[str]]:
    """The newest results file at or below a path, with a note where there were several."""
    if path.is_file():
        return path, []
    if not path.is_dir():
        raise RunError(f"there is no run at {path}: expected a folder that lm_eval or lmms_eval wrote into")
    found = [*path.rglob("results_*.json"), *path.rglob("*_results.json")]
    if not found:
        raise RunError(
            f"there is no results file below {path}: expected results_*.json of lm_eval or *_results.json of "
            "lmms_eval (lmms_eval writes none when a run fails)"
        )
    newest = max(found, key=lambda file: (_stamp(file), str(file)))
    if len(found) == 1:
        return newest, []
    return newest, [f"{path} holds {len(found)} runs: only the newest, {newest.name}, is read"]


def _stamp(file: Path) -> str:
    """The time in a results file's name, without what stands between the numbers."""
    return re.sub(r"\D", "", file.stem)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        results = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is not a results file ({str(error).splitlines()[0]}); run again") from error
    expected = ("results", "configs", "config")
    if not isinstance(results, dict) or not all(isinstance(results.get(key), dict) for key in expected):
        raise DataError(f"{file} is not a results file of lm_eval or lmms_eval: no {', '.join(expected)}")
    return results


def _read_task(
    file: Path, host: str, name: str, config: Mapping[str, Any], results: Mapping[str, Any]
) -> list[TaskRun]:
    """A task's records, one `TaskRun` a filter."""
    if host == "lm-eval":
        samples = file.with_name(f"samples_{name}_{file.stem.removeprefix('results_')}.jsonl")
    else:
        samples = file.with_name(f"{file.stem.removesuffix('_results')}_samples_{name}.jsonl")
    if not samples.is_file():
        raise RunError(f"there is no {samples.name} beside {file}: run again with --log_samples")
    records = read_samples(samples, config)
    expected = (results.get("n-samples") or {}).get(name, {}).get("effective")
    settings = {
        "task version": (results.get("versions") or {}).get(name),
        "few-shot examples": (results.get("n-shot") or {}).get(name),
        "parser": (config.get("metadata") or {}).get("parser"),
        "generation settings": config.get("generation_kwargs"),
    }
    tasks = []
    for filter_name in dict.fromkeys(record.filter for record in records):
        kept = [record for record in records if record.filter == filter_name]
        if expected is not None and len(kept) != expected:
            raise DataError(
                f"{samples} ends at line {len(records)} with {len(kept)} documents, but the results file "
                f"counts {expected}: the file is cut off, run again"
            )
        full_name = name if filter_name == "none" else f"{name},{filter_name}"
        tasks.append(TaskRun(full_name, _keyed(kept), settings))
    if not records and expected and not samples.stat().st_size:
        raise DataError(f"{samples} is empty, but the results file counts {expected} documents: run again")
    return tasks


def _keyed(records: list[SampleResult]) -> dict[str, SampleResult]:
    """Records by what their document is, numbered where a document is asked more than once."""
    times: Counter[str] = Counter()
    keyed = {}
    for record in records:
        keyed[f"{record.identity}#{times[record.identity]}"] = record
        times[record.identity] += 1
    return keyed


def _model(results: Mapping[str, Any]) -> str:
    """The evaluated model as its own record says, else as the command line did."""
    config, info = results["config"], results.get("model_info") or {}
    named = config.get("model_name") or info.get("pretrained") or _argument(config, "pretrained")
    return str(named or results.get("model_name") or config.get("model") or "unknown model")


def _argument(config: Mapping[str, Any], name: str) -> Any:
    """One of the host's model_args: a mapping in lm-eval, a text in lmms-eval."""
    given = config.get("model_args")
    if isinstance(given, Mapping):
        return given.get(name)
    pairs = (part.partition("=") for part in str(given or "").split(","))
    return next((value for key, _, value in pairs if key.strip() == name), None)


def _facts(results: Mapping[str, Any], host: str) -> dict[str, Any]:
    config, info = results["config"], results.get("model_info") or {}
    torch = re.search(r"PyTorch version: (\S+)", str(results.get("pretty_env_info", "")))
    template = results.get("chat_template") or info.get("chat_template")
    versions = info.get("versions") or {}  # of a gated run under lmms-eval, which records none itself
    version = str(results.get("lm_eval_version" if host == "lm-eval" else "lmms_eval_version") or "")
    return {
        "evaluated model": _model(results),
        "revision": config.get("model_sha") or info.get("sha"),
        "adapter": info.get("peft") or _argument(config, "peft"),
        "dtype": config.get("model_dtype") or info.get("dtype"),
        "batch size": info.get("batch_size") or config.get("batch_size"),
        "chat template": results.get("chat_template_sha") or template,
        "system instruction": results.get("system_instruction"),
        "few-shot as a conversation": bool(results.get("fewshot_as_multiturn")),
        # In a git checkout, lmms-eval writes that checkout's branch@commit in the place of its version.
        f"{host} version": version if version and "@" not in version else versions.get("lmms_eval"),
        "transformers version": results.get("transformers_version") or versions.get("transformers"),
        "torch version": torch[1] if torch else versions.get("torch"),
        "generation settings": config.get("gen_kwargs") or None,
    }
