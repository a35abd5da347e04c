"""`python -m scripts.faults` on a tiny model: a probe and a sweep are killed and interrupted, and go on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from scripts.faults.processes import ROOT


@pytest.mark.slow
def test_killed_and_interrupted_commands_end_in_the_undisturbed_result() -> None:
    command = ["-m", "scripts.faults", "--tiny", "--kills", "1", "--only", "kills,interrupts", "--seed", "3"]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    for fault in ("SIGKILL", "Ctrl-C"):
        for name in ("probe", "sweep"):
            assert f"{fault} at a random moment of `{name}`: 1 of 1" in done.stdout
    # Not ignored, as a shell lets what it starts in the background do.
    assert done.stdout.count("'aborted': 1") == 2
