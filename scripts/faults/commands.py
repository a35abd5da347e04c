"""The commands that are disturbed: what they need, and whether what they leave is what it should be."""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scripts.faults.processes import Ended, FaultError, run

_DATE = re.compile(r"\d{4}-\d\d-\d\dT[\d.-]+\d")  # in the names of lm-eval's files
_ARTIFACT = "a.npz"


class Disturbed(ABC):
    """A command with the result of an undisturbed run.

    Attributes:
        name: The command's.
        model: What the table calls its model.
        arguments: Those after `truthgate`.
        undisturbed: How that run ended.
    """

    name: str
    model: str = "tiny"
    arguments: Sequence[str]
    undisturbed: Ended

    def __init__(self, work: Path, times: int = 2) -> None:
        """Run it undisturbed, twice: the first run reads files that the second finds in memory.

        Args:
            work: A folder of its own.
            times: How often; the last run counts.
        """
        for number in range(times):
            self.expected = work / f"{self.name}-{number}"
            self.prepare(self.expected)
            self.undisturbed = self.run(self.expected).require_success()
        self.files = _files(self.expected)

    def prepare(self, folder: Path) -> None:
        """Make the folder in which the command runs, with its input."""
        folder.mkdir(parents=True)

    def run(self, folder: Path, **options: Any) -> Ended:
        """Run the command to its end."""
        return run(self.arguments, folder, **{"before": write_often, **options})

    @abstractmethod
    def check_after_fault(self, folder: Path) -> bool:
        """Whether the result is there, right after a fault.

        Raises:
            FaultError: There is half of one.
        """

    @abstractmethod
    def check_content(self, folder: Path) -> None:
        """Raise `FaultError` unless the result equals the undisturbed one's."""

    def check(self, folder: Path) -> None:
        """Raise `FaultError` unless the result, and all that is beside it, equal the undisturbed one's."""
        if self.files != (found := _files(folder)):
            raise FaultError(f"files differ: {sorted(self.files ^ found)}")
        self.check_content(folder)


class Probe(Disturbed):
    """`truthgate probe` of the packaged model."""

    name = "probe"

    def __init__(self, work: Path, model: str, *, limit: int = 5, more: Sequence[str] = ()) -> None:
        """See `Disturbed`.

        Args:
            work: As there.
            model: The model's folder or name.
            limit: Documents of HaluEval-QA, of two sequences each.
            more: More arguments.
        """
        self.arguments = [
            "probe", "--model_args", f"pretrained={model}", "--tasks", "probe_halueval_qa",
            "--limit", str(limit), "--batch_size", "1", "--folds", "1", "--solver", "newton",
            "--device", "cpu", "--output", _ARTIFACT, *more,
        ]  # fmt: skip
        self.model = _label(model)
        super().__init__(work)

    def check_after_fault(self, folder: Path) -> bool:
        """As there; the artifact is written twice, the second time with the model's own answers."""
        if not (folder / _ARTIFACT).exists():
            return False
        check_arrays(folder / _ARTIFACT, self.expected / _ARTIFACT)
        return True

    def check_content(self, folder: Path) -> None:
        """As there: all arrays bit for bit, and all metadata but the date."""
        check_arrays(folder / _ARTIFACT, self.expected / _ARTIFACT)
        check_metadata(folder / _ARTIFACT, self.expected / _ARTIFACT)


class Sweep(Disturbed):
    """`truthgate sweep` of three candidates, and three runs on the test split."""

    name = "sweep"

    def __init__(self, work: Path, model: str, artifact: Path, *, limit: int = 4) -> None:
        """See `Disturbed`.

        Args:
            work: As there.
            model: The model's folder or name.
            artifact: Its truth scores, of which every run gets a copy.
            limit: Documents of either split.
        """
        self._artifact, self.model = artifact.read_bytes(), _label(model)
        self.arguments = [
            "sweep", _ARTIFACT, "--model_args", f"pretrained={model}", "--tasks", "halueval_qa_select",
            "--lam", "2,-2", "--norm", "minmax", "--random", "1", "--limit", str(limit),
            "--rest_limit", str(limit), "--device", "cpu",
        ]  # fmt: skip
        super().__init__(work)

    def prepare(self, folder: Path) -> None:
        """As there, with the artifact."""
        super().prepare(folder)
        (folder / _ARTIFACT).write_bytes(self._artifact)

    def check_after_fault(self, folder: Path) -> bool:
        """As there; the artifact is as it was, or has the whole recommendation."""
        expected = self.expected / _ARTIFACT
        check_arrays(folder / _ARTIFACT, expected)
        points = folder / "a.sweep" / "points.jsonl"
        whole = (self.expected / "a.sweep" / "points.jsonl").read_text()
        if points.exists() and not whole.startswith(points.read_text()):
            raise FaultError(f"points.jsonl is no beginning of the undisturbed one: {points.read_text()!r}")
        for name in ("done.json", "sweep.json", "strengths.json"):
            for file in folder.rglob(name):
                json.loads(file.read_text())
        if "recommended" not in load(folder / _ARTIFACT).metadata:
            return False
        check_metadata(folder / _ARTIFACT, expected)
        return True

    def check_content(self, folder: Path) -> None:
        """As there: the recommendation, the points, the plot, and every answer on the test split."""
        check_arrays(folder / _ARTIFACT, self.expected / _ARTIFACT)
        check_metadata(folder / _ARTIFACT, self.expected / _ARTIFACT)
        ours, theirs = _contents(folder / "a.sweep"), _contents(self.expected / "a.sweep")
        for name, content in theirs.items():
            if not name.rpartition("/")[2].startswith("results_") and ours.get(name) != content:
                raise FaultError(f"{name} differs")


def _label(model: str) -> str:
    return "tiny" if os.path.isdir(model) else model


def write_often() -> None:
    """Let a probe write every finished batch at once; a probe of seconds would else write nothing."""
    from truthgate_eval.probing import kept_batches

    kept_batches._SECONDS, kept_batches._SHARE = 0.0, 1e9


def load(file: Path) -> Any:
    """An artifact.

    Raises:
        FaultError: It cannot be read.
    """
    from truthgate_eval.errors import TruthGateError
    from truthgate_eval.gating.scores import TruthScores

    try:
        return TruthScores.load(file)
    except TruthGateError as error:
        raise FaultError(f"a broken artifact: {error}") from error


def check_arrays(file: Path, expected: Path) -> None:
    """Raise `FaultError` unless all arrays of two artifacts are equal bit for bit."""
    from truthgate_eval.gating.score_files import ARRAYS

    ours, theirs = load(file), load(expected)
    pairs = [(name, getattr(ours, name), getattr(theirs, name)) for name in ARRAYS]
    pairs += [(name, ours.controls.get(name), values) for name, values in theirs.controls.items()]
    for name, found, wanted in pairs:
        if (found is None) != (wanted is None) or (found is not None and not _equal(found, wanted)):
            raise FaultError(f"{name} differs from the undisturbed run's")


def check_metadata(file: Path, expected: Path) -> None:
    """Raise `FaultError` unless the metadata of two artifacts are equal, but for the date."""
    ours, theirs = ({**load(path).metadata, "created": None} for path in (file, expected))
    if ours != theirs:
        names = [name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)]
        raise FaultError(f"metadata differ: {sorted(names)}")


def _equal(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> bool:
    return found.shape == wanted.shape and found.dtype == wanted.dtype and found.tobytes() == wanted.tobytes()


def _files(folder: Path) -> set[str]:
    """Names of all files and folders, with dates as one word."""
    return {_DATE.sub("DATE", str(path.relative_to(folder))) for path in folder.rglob("*")}


def _contents(folder: Path) -> dict[str, bytes]:
    """The content of all files by their names."""
    return {
        _DATE.sub("DATE", str(path.relative_to(folder))): path.read_bytes()
        for path in folder.rglob("*")
        if os.path.isfile(path)
    }
