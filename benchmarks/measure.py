"""Times a baseline and this package on one job, in turns in one process, and writes the result.

Memory is measured separately from time, each side in a process of its own. In one process the second side
would reuse the memory that the first has freed, and seem to need none.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
MIB = 2**20
_MMAP_THRESHOLD = -3  # malloc.h's M_MMAP_THRESHOLD
PACKAGES = ("torch", "transformers", "lm_eval", "numpy", "scikit-learn")


@dataclass(frozen=True)
class Side:
    """One way to do the job.

    Attributes:
        name: What it runs.
        cpu: CPU seconds of each round.
        wall: Wall seconds of each round.
        peak_mib: Memory at its highest above the start, in a process of its own: anonymous and shared
            pages, not those of files. On a GPU, what torch had allocated there.
    """

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
    baseline: Side
    ours: Side
    check: dict[str, Any]
    device: str = "cpu"

    @property
    def ratios(self) -> list[float]:
        """Baseline's seconds over ours, round by round: CPU seconds, and wall seconds on a GPU."""
        sides = (
            (self.baseline.cpu, self.ours.cpu)
            if self.device == "cpu"
            else (self.baseline.wall, self.ours.wall)
        )
        return [theirs / mine for theirs, mine in zip(*sides, strict=True)]

    def line(self) -> str:
        """The result in one line."""
        ratios = self.ratios
        return (
            f"{self.name}: {statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}, "
            f"{len(ratios)} rounds), {self.work}; check: {self.check}"
        )

    def save(self, *, quick: bool) -> Path:
        """Write the result and its machine as JSON; a quick one to a file of its own."""
        RESULTS.mkdir(exist_ok=True)
        ratio = {"median": statistics.median(self.ratios), "rounds": self.ratios}
        return write(self.name, {**asdict(self), "ratio": ratio}, device=self.device, quick=quick)


def write(name: str, result: dict[str, Any], *, device: str, quick: bool) -> Path:
    """Write a result as JSON: a quick one, and one of a GPU, to files of their own.

    The machine is added where the result does not describe its own use of it.
    """
    RESULTS.mkdir(exist_ok=True)
    kind = ("" if device == "cpu" else f".{device}") + (".quick" if quick else "")
    path = RESULTS / f"{name}{kind}.json"
    path.write_text(json.dumps({"machine": machine(device), **result}, indent=1) + "\n")
    return path


def compare(
    name: str,
    work: str,
    n: int,
    baseline: tuple[str, Callable[[], Any]],
    ours: tuple[str, Callable[[], Any]],
    check: Callable[[Any, Any], dict[str, Any]],
    *,
    rounds: int,
    device: str = "cpu",
) -> Result:
    """Run both sides in turns; the first outputs are compared.

    Args:
        name: The result's name.
        work: What was done, in words.
        n: Documents, heads or tokens of it.
        baseline: The other implementation: its name and a call that does all the work.
        ours: This package's.
        check: Compares (baseline's, our) output; `passed` in its answer says whether they agree.
        rounds: How often each side runs.
        device: `cpu`, or `cuda` where both sides run on a GPU.
    """
    both = (baseline, ours)
    # Before anything has run: memory that was freed here would be there to fill again.
    peaks = [own_peak(call) if device == "cpu" else None for _, call in both]
    cpu: list[list[float]] = [[], []]
    wall: list[list[float]] = [[], []]
    outputs = []
    for round_ in range(rounds):
        for i, (_, call) in enumerate(both):
            output, spent, passed, peak = _timed(call, device)
            cpu[i].append(spent)
            wall[i].append(passed)
            if round_ == 0:
                outputs.append(output)
                peaks[i] = peaks[i] if peak is None else peak
    sides = [Side(both[i][0], cpu[i], wall[i], peaks[i]) for i in range(2)]
    return Result(name, work, n, sides[0], sides[1], check(*outputs), device)


def _timed(call: Callable[[], Any], device: str) -> tuple[Any, float, float, float | None]:
    """(output, CPU seconds, wall seconds, MiB above the start that a GPU had allocated)."""
    start = 0
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
    cpu, wall = time.process_time(), time.perf_counter()
    output = call()
    if device == "cuda":
        torch.cuda.synchronize()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return output, cpu, wall, (torch.cuda.max_memory_allocated() - start) / MIB if device == "cuda" else None


def own_peak(call: Callable[[], Any]) -> float | None:
    """Peak memory of a call above its start, in MiB, in a process of its own; None without `/proc`.

    The process is a fork of this one, which reads the fork's memory every few milliseconds: the kernel's own
    high-water mark also counts pages of files, such as a library's code and a checkpoint's weights.
    """
    if not Path("/proc/self/status").exists():
        return None
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _run_and_exit(call, writer)
    os.close(writer)
    started = os.read(reader, 1)
    os.close(reader)
    start = peak = _anonymous_memory(child)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        peak = max(peak, _anonymous_memory(child))
        time.sleep(0.002)
    if not started:
        raise RuntimeError("the process that measures memory did not start")
    return (peak - start) / 1024


def _run_and_exit(call: Callable[[], Any], writer: int) -> None:
    """In the fork: release free memory, tell the parent, run, and end without the parent's exit handlers."""
    try:
        libc = ctypes.CDLL(None)
        # Take arrays from the system and give them back: blocks that malloc keeps would hide a side's need.
        libc.mallopt(_MMAP_THRESHOLD, 2**17)
        gc.collect()
        libc.malloc_trim(0)
        os.write(writer, b"s")
        os.close(writer)
        time.sleep(0.1)  # for the parent to read the start
        call()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _anonymous_memory(process: int) -> float:
    """KiB of anonymous and shared memory of a process; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(float(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))


def machine(device: str = "cpu") -> dict[str, Any]:
    """The machine and the versions that a result depends on."""
    if device == "cuda":
        return {"gpu": torch.cuda.get_device_name(), "dtype": "bfloat16", **_common()}
    names = [line for line in _cpuinfo() if line.startswith("model name")]
    return {
        "processor": names[0].split(":")[1].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "pinned": hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) == 1,
        "dtype": "float32",
        "note": "CPU seconds of one pinned thread; baseline and ours in turns in one process",
        **_common(),
    }


def _common() -> dict[str, Any]:
    return {
        "load_at_end": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
