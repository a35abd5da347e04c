"""Several processes that do the same thing at the same time."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass


@dataclass
class Finished:
    returncode: int
    stdout: str
    stderr: str


def run_at_once(setup: str, action: str, *, processes: int = 2, **environment: str) -> list[Finished]:
    """Run `setup` in every process; when all are ready, run `action` in all of them at once."""
    script = f"import sys\n{setup}\nprint('ready', flush=True)\nsys.stdin.readline()\n{action}\n"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env={**os.environ, **environment},
        )
        for _ in range(processes)
    ]  # fmt: skip
    for process in started:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == "ready\n", process.communicate()[1]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    finished = []
    for process in started:
        out, err = process.communicate(timeout=300)
        finished.append(Finished(process.returncode, out, err))
    return finished
