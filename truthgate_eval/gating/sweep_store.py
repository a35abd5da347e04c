"""The folder of a sweep, which allows an interrupted sweep to be continued.

FOLDER/sweep.json      what is swept; a sweep of another artifact, task or model cannot continue here
FOLDER/points.jsonl    one evaluated candidate a line
FOLDER/strengths.json  what was found for controls of the same strength as the choice
FOLDER/sweep.png       a plot of the candidates
FOLDER/rest/NAME/      the harness's result files of each run on the test split
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from truthgate_eval.errors import DataError, TruthGateError
from truthgate_eval.files import read_bounded, read_json, read_json_lines, write_atomic
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.sweep import Candidate, EvalResult

log = logging.getLogger(__name__)

# Sweeps from before strengths were found have points without these fields.
_ADDED = ("target", "reached", "stderr_reached", "prompts")
_MAX_POINTS = 32 << 20  # bytes
_FIELDS = tuple(field.name for field in dataclasses.fields(Candidate) if field.name not in _ADDED)


class SweepStore:
    """A sweep's folder.

    It is made at once, so that a folder that cannot be written is reported before any evaluation.

    Attributes:
        folder: The folder.
        points_file: Its file of evaluated candidates.
        plot_file: Its plot.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Open or make the folder.

        Args:
            folder: Its path.
            identity: What all candidates of the sweep have in common, JSON-serializable.

        Raises:
            TruthGateError: The folder has another sweep, or cannot be written.
        """
        self.folder = folder
        self.points_file = folder / "points.jsonl"
        self.plot_file = folder / "sweep.png"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TruthGateError(f"{folder} cannot be made: {error.strerror}") from error
        self._check_identity(folder / "sweep.json", json.loads(json.dumps(dict(identity))))

    def _check_identity(self, file: Path, identity: dict[str, Any]) -> None:
        if not file.is_file():
            write_atomic(file, (json.dumps(identity, indent=2) + "\n").encode())
            return
        try:
            found = read_json(file)
        except DataError as error:
            raise DataError(f"{error}: remove {self.folder} and start again") from error
        if not isinstance(found, dict):
            raise DataError(f"{file} is no sweep's: remove {self.folder} and start again")
        different = [name for name in identity if found.get(name) != identity[name]]
        if different:
            raise TruthGateError(
                f"{self.folder} holds a sweep with {different[0]}={found.get(different[0])}, this one has "
                f"{different[0]}={identity[different[0]]}: give another --output, or remove that folder"
            )

    def candidates(self) -> dict[tuple[float | str, str, str], Candidate]:
        """The evaluated candidates by their label; a last line without an end is removed from the file."""
        if not self.points_file.is_file():
            return {}
        text = read_bounded(self.points_file, _MAX_POINTS)
        complete = text[: text.rfind(b"\n") + 1]
        if complete != text:
            write_atomic(self.points_file, complete)
        candidates = [
            Candidate.from_record(point, f"{self.points_file}, line {number}")
            for number, point in read_json_lines(self.points_file, _FIELDS)
        ]
        return {candidate.label: candidate for candidate in candidates}

    def add(self, candidate: Candidate) -> None:
        """Append an evaluated candidate.

        Raises:
            TruthGateError: The file cannot be written.
        """
        try:
            with self.points_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(candidate)) + "\n")
        except OSError as error:
            raise TruthGateError(f"{self.points_file} cannot be written: {error.strerror}") from error

    def found_strength(self, name: str, gate: GateConfig, find: Callable[[], GateConfig]) -> GateConfig:
        """A control's gate with its strength, looked for if that has not been done yet.

        Args:
            name: Name of the control's run.
            gate: The gate, with a strength to be found.
            find: Finds it.
        """
        file = self.folder / "strengths.json"
        kept = _read_state(file) if file.exists() else {}
        described = json.loads(json.dumps(gate.describe()))
        own = kept.get(name)
        is_kept = isinstance(own, dict) and own.get("gate") == described and _is_strength(own.get("found"))
        if not is_kept:
            found = find()
            assert found.target is not None
            known = found.target
            numbers = [found.lam, known.reached, known.stderr, known.prompts]
            kept[name] = {"gate": described, "found": numbers}
            write_atomic(file, (json.dumps(kept, indent=2) + "\n").encode())
        return gate.with_strength(*kept[name]["found"])

    def test_result(
        self, name: str, gate: GateConfig, evaluate: Callable[[Path], EvalResult]
    ) -> tuple[Path, EvalResult]:
        """A gate's result on the test split, evaluated if that has not been done yet.

        Args:
            name: Name of the run; a run of that name with another gate is replaced.
            gate: The gate.
            evaluate: Evaluates the gate and writes the harness's result files into a folder.

        Returns:
            The run's folder and its result.
        """
        folder = self.folder / "rest" / name
        done_file = folder / "done.json"
        described = json.loads(json.dumps(gate.describe()))
        if done_file.exists():
            done = _read_state(done_file)
            # Runs from before there were actions recorded neither of these.
            defaults = {} if gate.is_vanilla else {"action": "soft", "positions": "all"}
            result = _result_of(done.get("outcome"))
            if isinstance(done.get("gate"), dict) and {**defaults, **done["gate"]} == described and result:
                return folder, result
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise TruthGateError(f"{folder} cannot be made: {error.strerror}") from error
        result = evaluate(folder)
        done = {"gate": described, "outcome": dataclasses.asdict(result)}
        write_atomic(done_file, json.dumps(done).encode())
        return folder, result


def _read_state(file: Path) -> dict[str, Any]:
    """The object in one of the folder's files; empty, with a warning, where the file is damaged."""
    try:
        found = read_json(file)
    except DataError:
        found = None
    if isinstance(found, dict):
        return found
    log.warning("%s is damaged: what it held is done again", file)
    return {}


def _is_number(value: object) -> bool:
    """Whether a value is a number that a float holds; a metric that is not defined is NaN."""
    return isinstance(value, int | float) and (value != value or abs(value) <= sys.float_info.max)


def _is_strength(value: object) -> bool:
    """Whether a value is the strength, its divergence and standard error, and the number of prompts."""
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(_is_number(number) for number in value)
        and not math.isnan(value[0])
        and isinstance(value[3], int)
    )


def _result_of(outcome: object) -> EvalResult | None:
    """The result that was recorded, or None where it is none."""
    fields = outcome if isinstance(outcome, dict) else {}
    value, stderr, documents = (fields.get(name) for name in ("value", "stderr", "documents"))
    if not isinstance(value, int | float) or not _is_number(value) or not isinstance(documents, int):
        return None
    return EvalResult(value, stderr if _is_number(stderr) else None, documents)
