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
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from truthgate_eval.errors import DataError, TruthGateError
from truthgate_eval.files import read_json_lines, write_atomic
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.sweep import Candidate, EvalResult

# Sweeps from before strengths were found have points without these fields.
_ADDED = ("target", "reached", "stderr_reached", "prompts")
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
            found = json.loads(file.read_bytes())
        except ValueError as error:
            raise DataError(f"{file} is not JSON: remove {self.folder} and start again") from error
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
        text = self.points_file.read_text(encoding="utf-8")
        complete = text[: text.rfind("\n") + 1]
        if complete != text:
            write_atomic(self.points_file, complete.encode())
        candidates: list[Candidate] = []
        for _, point in read_json_lines(self.points_file, _FIELDS):
            fields: dict[str, Any] = {name: point.get(name) for name in (*_FIELDS, *_ADDED)}
            candidates.append(Candidate(**fields))
        return {candidate.label: candidate for candidate in candidates}

    def add(self, candidate: Candidate) -> None:
        """Append an evaluated candidate."""
        with self.points_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(candidate)) + "\n")

    def found_strength(self, name: str, gate: GateConfig, find: Callable[[], GateConfig]) -> GateConfig:
        """A control's gate with its strength, looked for if that has not been done yet.

        Args:
            name: Name of the control's run.
            gate: The gate, with a strength to be found.
            find: Finds it.
        """
        file = self.folder / "strengths.json"
        kept: dict[str, Any] = json.loads(file.read_bytes()) if file.is_file() else {}
        described = json.loads(json.dumps(gate.describe()))
        if kept.get(name, {}).get("gate") != described:
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
        if done_file.is_file():
            done = json.loads(done_file.read_bytes())
            # Runs from before there were actions recorded neither of these.
            defaults = {} if gate.is_vanilla else {"action": "soft", "positions": "all"}
            if {**defaults, **done["gate"]} == described:
                return folder, EvalResult(**done["outcome"])
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        result = evaluate(folder)
        done = {"gate": described, "outcome": dataclasses.asdict(result)}
        write_atomic(done_file, json.dumps(done).encode())
        return folder, result
