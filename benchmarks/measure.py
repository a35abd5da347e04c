"""Two ways to do one job, timed in turns in one process, and the record of it."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "lm_eval", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Side:
    """One way to do the job: seconds of each round, and memory at its highest above the start."""

    name: str
    cpu: list[float]
    wall: list[float]
    peak_mib: float | None


@dataclass(frozen=True)
class Result:
    """A comparison: what was done on how much, both sides' times, and whether the outputs agree."""

    name: str
    work: str
    n: int
    peer: Side
    ours: Side
    check: dict[str, Any]

    @property
    def ratios(self) -> list[float]:
        """Peer's CPU seconds over ours, round by round."""
        return [theirs / mine for theirs, mine in zip(self.peer.cpu, self.ours.cpu, strict=True)]

    def line(self) -> str:
        """The result in one line."""
        ratios = self.ratios
        return (
            f"{self.name}: {statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}, "
            f"{len(ratios)} rounds), {self.work}; check: {self.check}"
        )

    def save(self, *, quick: bool) -> Path:
        """Write the result with the machine described; a quick one to a name of its own."""
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}{'.quick' if quick else ''}.json"
        record = {
            **asdict(self),
            "ratio": {"median": statistics.median(self.ratios), "rounds": self.ratios},
            "machine": machine(),
        }
        path.write_text(json.dumps(record, indent=1) + "\n")
        return path


def compare(
    name: str,
    work: str,
    n: int,
    peer: tuple[str, Callable[[], Any]],
    ours: tuple[str, Callable[[], Any]],
    check: Callable[[Any, Any], dict[str, Any]],
    *,
    rounds: int,
) -> Result:
    """Run both sides in turns; the first outputs are compared.

    Args:
        name: The result's name.
        work: What was done, in words.
        n: Documents, heads or tokens of it.
        peer: The other's way: its name and a call that does all the work.
        ours: This package's.
        check: Compares (peer's, our) output; `passed` in its answer says whether they agree.
        rounds: How often each side runs.
    """
    sides: dict[str, dict[str, list[float]]] = {
        side: {"cpu": [], "wall": [], "peak": []} for side, _ in (peer, ours)
    }
    outputs = []
    for round_ in range(rounds):
        for side, call in (peer, ours):
            output, cpu, wall, peak = _timed(call)
            for key, value in (("cpu", cpu), ("wall", wall), ("peak", peak)):
                if value is not None:
                    sides[side][key].append(value)
            if round_ == 0:
                outputs.append(output)
    made = [
        Side(side, times["cpu"], times["wall"], max(times["peak"], default=None))
        for side, times in sides.items()
    ]
    return Result(name, work, n, made[0], made[1], check(*outputs))


def _timed(call: Callable[[], Any]) -> tuple[Any, float, float, float | None]:
    """(output, CPU seconds, wall seconds, MiB above the start)."""
    start = _reset_peak()
    cpu, wall = time.process_time(), time.perf_counter()
    output = call()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return output, cpu, wall, None if start is None else (_status("VmHWM") - start) / 1024


def _reset_peak() -> float | None:
    """Make Linux forget the highest memory so far; the memory now, in KiB. None elsewhere."""
    clear = Path("/proc/self/clear_refs")
    if not os.access(clear, os.W_OK):
        return None
    clear.write_text("5")
    return _status("VmRSS")


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(field)).split()[1])


def machine() -> dict[str, Any]:
    """What a number depends on."""
    names = [line for line in _cpuinfo() if line.startswith("model name")]
    return {
        "processor": names[0].split(":")[1].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "pinned": hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) == 1,
        "load_at_end": round(os.getloadavg()[0], 1),
        "dtype": "float32",
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "note": "CPU seconds of one pinned thread; peer and ours in turns in one process",
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
