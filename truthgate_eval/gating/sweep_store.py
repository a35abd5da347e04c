"""Where a sweep keeps what it has done, so that it can be interrupted and go on.

FOLDER/sweep.json      what is swept: another artifact, task or model may not go on here
FOLDER/points.jsonl    one finished point a line
FOLDER/sweep.png       the points
FOLDER/rest/NAME/      the host's own result files of each run on the rest of the data
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from truthgate_eval.errors import DataError, TruthGateError
from truthgate_eval.files import read_json_lines, write_whole
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.sweep import Candidate, EvalResult

_FIELDS = tuple(field.name for field in dataclasses.fields(Candidate))


class SweepStore:
    """A sweep's folder; made at once, so that a place that cannot be written to is known before any work."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Open or make it.

        Args:
            folder: Where.
            identity: All that points must have in common, JSON-serialisable.

        Raises:
            TruthGateError: It holds another sweep, or cannot be written to.
        """
        self.folder = folder
        self.points_file = folder / "points.jsonl"
        self.plot_file = folder / "sweep.png"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TruthGateError(f"{folder} cannot be made: {error.strerror}") from error
        self._check(folder / "sweep.json", json.loads(json.dumps(dict(identity))))

    def _check(self, file: Path, identity: dict[str, Any]) -> None:
        if not file.is_file():
            write_whole(file, (json.dumps(identity, indent=2) + "\n").encode())
            return
        try:
            found = json.loads(file.read_bytes())
        except ValueError as error:
            raise DataError(f"{file} is not JSON: remove {self.folder} and start again") from error
        other = [name for name in identity if found.get(name) != identity[name]]
        if other:
            raise TruthGateError(
                f"{self.folder} holds a sweep with {other[0]}={found.get(other[0])}, this one has "
                f"{other[0]}={identity[other[0]]}: give another --output, or remove that folder"
            )

    def candidates(self) -> dict[tuple[float, str, str], Candidate]:
        """The finished points, by their settings; a line that an interruption cut off does not count."""
        if not self.points_file.is_file():
            return {}
        text = self.points_file.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            write_whole(self.points_file, whole.encode())
        points = [
            Candidate(**{name: record[name] for name in _FIELDS})
            for _, record in read_json_lines(self.points_file, _FIELDS)
        ]
        return {point.label: point for point in points}

    def add(self, point: Candidate) -> None:
        """Keep a finished point."""
        with self.points_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(point)) + "\n")

    def test_result(
        self, name: str, gate: GateConfig, judge: Callable[[Path], EvalResult]
    ) -> tuple[Path, EvalResult]:
        """Judge a gate on the rest of the data, unless that is done already.

        Args:
            name: Of the run.
            gate: What it is gated with; a run of that name with another gate is replaced.
            judge: Writes the host's result files into a folder.
        """
        folder = self.folder / "rest" / name
        mark = folder / "done.json"
        described = json.loads(json.dumps(gate.describe()))
        if mark.is_file():
            done = json.loads(mark.read_bytes())
            if done["gate"] == described:
                return folder, EvalResult(**done["outcome"])
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        outcome = judge(folder)
        write_whole(mark, json.dumps({"gate": described, "outcome": dataclasses.asdict(outcome)}).encode())
        return folder, outcome
