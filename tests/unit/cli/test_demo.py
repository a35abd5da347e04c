"""The demo: which commands it runs, and what it says of their tables. Nothing is run here."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from truthgate_eval.cli import demo
from truthgate_eval.errors import TruthGateError
from truthgate_eval.gating.scores import TruthScores


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replaces every command by one that writes its artifact only, and returns what was to be run."""
    found: list[list[str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        found.append(command[2:])
        if "probe" in command:
            value = 0.4 if "probe_scenes" in command else 0.9
            output = Path(command[command.index("--output") + 1])
            TruthScores(np.full((2, 3), value), metadata={}).save(output)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(demo.subprocess, "run", run)
    monkeypatch.setattr(demo, "resolve_packaged", lambda name, _: name)
    return found


def run(folder: Path) -> str:
    text = io.StringIO()
    demo.run_demo(Console(file=text, width=200), folder, documents=20, limit=5)
    return text.getvalue()


def test_it_runs_the_ordinary_commands(commands: list[list[str]], tmp_path: Path) -> None:
    run(tmp_path)
    names = [" ".join(command[:2]).replace("truthgate_eval", "truthgate") for command in commands]
    assert names == [
        "truthgate probe", "truthgate show", "lm_eval --model", "lm_eval --model", "truthgate compare",
        "truthgate probe", "truthgate probe", "lmms_eval --model", "lmms_eval --model", "lmms_eval --model",
        "truthgate compare", "truthgate correlate",
    ]  # fmt: skip


def test_every_table_has_a_reading_and_the_end_names_the_images(
    commands: list[list[str]], tmp_path: Path
) -> None:
    lines = run(tmp_path).splitlines()
    readings = [line for line in lines if line.startswith("Reading: ")]
    assert len(readings) == 6
    assert readings[0].endswith("in 90 % of cases, the best in 90 %; 50 % is chance.")
    assert readings[2] == "Reading: with images, the mean score is 0.40, not above chance."
    assert [line.split() for line in lines[-3:]] == [
        ["heat", "map:", str(tmp_path / "heat_map.png")],
        ["correlations:", str(tmp_path / "family.png")],
        ["all", "results:", str(tmp_path)],
    ]


def test_a_failing_step_is_named_with_its_last_line(
    commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = demo.subprocess.run

    def run_or_fail(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        if "lm_eval" in command:
            return subprocess.CompletedProcess(command, 1, "", "log\nerror: no scores\n")
        return original(command, **options)

    monkeypatch.setattr(demo.subprocess, "run", run_or_fail)
    with pytest.raises(
        TruthGateError, match=r"the step `lm_eval --model gated_hf .*` failed: error: no scores"
    ):
        run(tmp_path)
