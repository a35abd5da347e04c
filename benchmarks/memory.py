"""Memory of probing 10,000 samples of a 7B shape: activations in a file against all of them in memory.

The activations are random numbers. Measured are their allocation, their writing in the order of capturing,
and the fitting and evaluation of all heads' probes. Each side runs in a process of its own, freshly started,
whose high-water mark counts all mapped pages, those of the file included. The system's file cache is in
neither figure: the system gives it up when memory is needed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import Result, Side
from truthgate_eval.probing.activations import ActivationWriter, allocate_activations
from truthgate_eval.probing.config import ProbeConfig
from truthgate_eval.probing.cross_validation import cross_validate_heads


def run(name: str, *, quick: bool, rounds: int) -> Iterator[Result]:
    """Yield the comparison; `rounds` is not used: memory does not vary."""
    del rounds
    shape = (1000, 4, 32, 128) if quick else (10000, 32, 32, 128)
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = (_apart(shape, memory, folder) for memory in (1e6, 0.0))
    whole = 4 * np.prod(shape) / 2**20
    check = {
        "passed": theirs["scores"] == ours["scores"],
        "same_scores": theirs["scores"] == ours["scores"],
        "activations_mib": round(float(whole)),
        "ours_of_all": f"1/{whole / ours['peak_mib']:.1f}",
    }
    yield Result(
        name,
        f"probes of {shape[0]} random samples of {shape[1]} layers x {shape[2]} heads x {shape[3]}, newton",
        shape[0],
        Side("all in memory", [theirs["cpu"]], [theirs["wall"]], theirs["peak_mib"]),
        Side("in a file, layer by layer", [ours["cpu"]], [ours["wall"]], ours["peak_mib"]),
        check,
    )


def _apart(shape: tuple[int, ...], memory: float, folder: str) -> dict[str, float]:
    """`measure` in a new process."""
    command = [sys.executable, "-m", "benchmarks.memory", json.dumps(shape), str(memory), folder]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def measure(shape: tuple[int, int, int, int], memory: float, folder: str) -> dict[str, float]:
    """Peak MiB above the start, seconds, and the scores' sum."""
    torch.set_num_threads(1)
    _probe((200, 1, 2, shape[3]), 1.0, folder)  # libraries are loaded, and code is in memory
    Path("/proc/self/clear_refs").write_text("5")
    start, cpu, wall = _status("VmRSS"), time.process_time(), time.perf_counter()
    scores = _probe(shape, memory, folder)
    return {
        "peak_mib": (_status("VmHWM") - start) / 1024,
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "scores": scores,
    }


def _probe(shape: tuple[int, int, int, int], memory: float, folder: str) -> float:
    rng = np.random.default_rng(0)
    room = allocate_activations(shape, memory=memory, folder=Path(folder))
    writer = ActivationWriter(room)
    for i in rng.permutation(shape[0]).tolist():  # capturing goes by length, and not in order
        writer.put([i], rng.standard_normal(shape[1:], dtype=np.float32))
    writer.drop()
    labels, documents = np.arange(shape[0]) % 2, np.arange(shape[0]) // 2
    result = cross_validate_heads(room, labels, documents, ProbeConfig(solver="newton"))
    return float(result.scores.sum())


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


if __name__ == "__main__":
    print(json.dumps(measure(tuple(json.loads(sys.argv[1])), float(sys.argv[2]), sys.argv[3])))
