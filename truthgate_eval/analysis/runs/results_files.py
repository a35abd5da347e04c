"""Names and contents of the files that lm-eval and lmms-eval write (`docs/harnesses.md#results-files`).

| | results | samples of one task |
| --- | --- | --- |
| lm-eval | `results_STAMP.json` | `samples_TASK_STAMP.jsonl` |
| lmms-eval | `STAMP_results.json` | `STAMP_samples_TASK.jsonl` |
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from truthgate_eval.errors import DataError, TruthGateError, one_line, shorten
from truthgate_eval.files import read_json

Harness = Literal["lm-eval", "lmms-eval"]
# What a task's name may be as a part of a file's name.
_FILE_NAME = re.compile(r"[^/\\\x00-\x1f\ud800-\udfff]{1,180}")


class RunError(TruthGateError):
    """A run cannot be read, or runs cannot be compared."""


def find_results_file(path: Path) -> tuple[Path, list[str]]:
    """The newest results file at or below a path, and a note if there are more than one.

    Raises:
        RunError: There is none.
    """
    if os.path.isfile(path):
        return path, []
    if not os.path.isdir(path):
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
        results = read_json(file)
    except DataError as error:
        reason = one_line(error).removeprefix(f"cannot read {file}: ").removeprefix(f"{file} ")
        raise DataError(f"{file} is not a results file ({reason}); run again") from error
    expected = ("results", "configs", "config")
    if not isinstance(results, dict) or not all(isinstance(results.get(key), dict) for key in expected):
        raise DataError(f"{file} is not a results file of lm_eval or lmms_eval: no {', '.join(expected)}")
    _check_types(results, file)
    return results


def _check_types(results: dict[str, Any], file: Path) -> None:
    """Raise `DataError` where an entry that is read has another type than the harnesses write."""

    def check(name: str, value: Any, kind: type | tuple[type, ...], expected: str) -> None:
        if value and not isinstance(value, kind):
            shown = shorten(value)
            raise DataError(f"{file} is not a results file: {name} is {shown}, expected {expected}")

    for name in ("n-samples", "versions", "n-shot", "group_subtasks", "model_info"):
        check(name, results.get(name), dict, "an object")
    check("model_info.versions", (results.get("model_info") or {}).get("versions"), dict, "an object")
    for task, counts in (results.get("n-samples") or {}).items():
        check(f"n-samples.{task}", counts, dict, "an object")
        check(f"n-samples.{task}.effective", (counts or {}).get("effective"), (int, float), "a number")
    groups = results.get("group_subtasks") or {}
    for group, members in groups.items():
        check(f"group_subtasks.{group}", members, list, "a list of tasks")
        if not all(isinstance(member, str) for member in members or []):
            raise DataError(f"{file} is not a results file: group_subtasks.{group} is {shorten(members)}")
    for task in results["configs"]:
        if not _FILE_NAME.fullmatch(task):
            raise DataError(
                f"{file} is not a results file: no samples file can have {shorten(task)} in its name"
            )
    if (group := _group_in_itself(groups)) is not None:
        raise DataError(f"{file} is not a results file: the group {group} is a member of itself")


def _group_in_itself(groups: dict[str, list[str]]) -> str | None:
    """A group that is a member of itself, over other groups or not; None if there is none."""
    remaining = dict(groups)
    while remaining:
        ready = [name for name, members in remaining.items() if not remaining.keys() & (members or [])]
        if not ready:
            return next(iter(remaining))
        for name in ready:
            del remaining[name]
    return None


def recorded_gate(results: dict[str, Any], file: Path) -> dict[str, Any] | None:
    """The gate as `GateConfig.describe` recorded it; None where a model of the harness itself ran.

    Raises:
        DataError: The entry is no gate.
    """
    gate = results.get("gate") or results["config"].get("gate")
    if not gate:
        return None
    if not isinstance(gate, dict):
        raise DataError(f"{file}: the recorded gate is {shorten(gate)}, expected an object")
    for name, kind in (("probed", dict), ("layers", list)):
        if gate.get(name) and not isinstance(gate[name], kind):
            raise DataError(f"{file}: {name} of the recorded gate is {shorten(gate[name])}")
    contrast = gate.get("contrast")
    if contrast and not (isinstance(contrast, dict) and _is_number(contrast.get("alpha"))):
        raise DataError(f"{file}: contrast of the recorded gate is {shorten(contrast)}, expected an alpha")
    _check_strength(gate, file)
    if "lam" in gate:
        # A multiple of a random gate or of a selection has no norm.
        is_soft = gate.get("kind", "scores") != "random" and gate.get("action", "soft") == "soft"
        has_norm = is_soft or "norm" in gate
        lam, norm = gate["lam"], gate.get("norm")
        if not _is_number(lam) or (has_norm and not isinstance(norm, str)):
            raise DataError(f"{file}: the recorded gate has lam={shorten(lam)}, norm={shorten(norm)}")
    return gate


def _check_strength(gate: Mapping[str, Any], file: Path) -> None:
    """Check what is recorded of a strength that was found."""
    strength = gate.get("strength")
    if not strength:
        return
    argument = strength.get("argument") if isinstance(strength, dict) else None
    names = [name for name in ("lam", "alpha", "yes_offset") if name == argument]
    if not names or not _is_number(strength.get("target")) or not _is_number(gate.get(names[0], 0.0)):
        raise DataError(f"{file}: strength of the recorded gate is {shorten(strength)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def harness_of(results: dict[str, Any]) -> Harness:
    """The harness that wrote a results file."""
    return "lmms-eval" if "lmms_eval_version" in results else "lm-eval"
