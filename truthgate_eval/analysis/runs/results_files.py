"""Names and contents of the files that lm-eval and lmms-eval write (`docs/harnesses.md#results-files`).

| | results | samples of one task |
| --- | --- | --- |
| lm-eval | `results_STAMP.json` | `samples_TASK_STAMP.jsonl` |
| lmms-eval | `STAMP_results.json` | `STAMP_samples_TASK.jsonl` |
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from truthgate_eval.errors import DataError, TruthGateError, first_line

Harness = Literal["lm-eval", "lmms-eval"]


class RunError(TruthGateError):
    """A run cannot be read, or runs cannot be compared."""


def find_results_file(path: Path) -> tuple[Path, list[str]]:
    """The newest results file at or below a path, and a note if there are more than one.

    Raises:
        RunError: There is none.
    """
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
    newest = max(found, key=lambda file: (_digits(file), str(file)))
    if len(found) == 1:
        return newest, []
    return newest, [f"{path} has {len(found)} runs: only the newest, {newest.name}, is read"]


def _digits(file: Path) -> str:
    """The digits of the time in a results file's name, which sort by time for both harnesses."""
    return re.sub(r"\D", "", file.stem)


def samples_file(results_file: Path, harness: Harness, task: str) -> Path:
    """The file beside a results file that has the samples of one task.

    Example:
        >>> samples_file(Path("run/results_2026-01-02.json"), "lm-eval", "halueval_qa").name
        'samples_halueval_qa_2026-01-02.jsonl'
        >>> samples_file(Path("run/20260102_results.json"), "lmms-eval", "pope").name
        '20260102_samples_pope.jsonl'
    """
    if harness == "lm-eval":
        return results_file.with_name(f"samples_{task}_{results_file.stem.removeprefix('results_')}.jsonl")
    return results_file.with_name(f"{results_file.stem.removesuffix('_results')}_samples_{task}.jsonl")


def read_results(file: Path) -> dict[str, Any]:
    """The content of a results file.

    Raises:
        DataError: The file cannot be read or is not a results file.
    """
    try:
        results = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is not a results file ({first_line(error)}); run again") from error
    expected = ("results", "configs", "config")
    if not isinstance(results, dict) or not all(isinstance(results.get(key), dict) for key in expected):
        raise DataError(f"{file} is not a results file of lm_eval or lmms_eval: no {', '.join(expected)}")
    return results


def harness_of(results: dict[str, Any]) -> Harness:
    """The harness that wrote a results file."""
    return "lmms-eval" if "lmms_eval_version" in results else "lm-eval"
