"""How long `truthgate study --quick` takes for five kinds of score and two actions on the packaged child."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Result, machine, write

KINDS = ("accuracy", "gradient", "learned", "divergence", "direct-effect")
_LARGEST_MINUTES = 30


def run(name: str, *, quick: bool, rounds: int) -> Iterator[Result]:
    """Time the command on all cores, print and write its minutes; there is nothing to compare it with."""
    del rounds
    kinds = KINDS[:1] if quick else KINDS
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "truthgate_eval", "study", "--quick", "--model", "vlm", "--tasks",
            "probe_scenes", "--apply_chat_template", "--output", folder,
            *(part for kind in kinds for part in ("--score", kind)),
            *(("--limit", "40", "--controls", "1") if quick else ()),
        ]  # fmt: skip
        started = time.perf_counter()
        subprocess.run(
            command,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": str(cores), "MKL_NUM_THREADS": str(cores)},
            # This process is pinned to one core.
            preexec_fn=(
                (lambda: os.sched_setaffinity(0, range(cores))) if hasattr(os, "sched_setaffinity") else None
            ),
        )
        minutes = (time.perf_counter() - started) / 60
        (study,) = json.loads((Path(folder) / "study.json").read_text())["models"].values()
    gates = len(study["rows"])
    found = {
        "name": name,
        "command": " ".join(["truthgate", *command[3:]]).replace(f" --output {folder}", ""),
        "cores": cores,
        "gates": gates,
        "minutes": minutes,
        "machine": {**machine("cpu"), "threads": cores, "pinned": False, "note": "wall time of the command"},
    }
    print(write(name, found, device="cpu", quick=quick))
    print(f"{name}: {minutes:.1f} minutes for {len(kinds)} kinds, {gates} rows, {cores} cores")
    if minutes > _LARGEST_MINUTES:
        sys.exit(f"{name}: more than {_LARGEST_MINUTES} minutes")
    yield from ()
