"""All benchmarks in one command, `python -m benchmarks all`: as many as memory and time allow.

On a GPU the most telling come first, so that a short loan of one gives them.
"""

from __future__ import annotations

import gc
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass(frozen=True)
class Need:
    """What a benchmark's GPU variant takes, by estimate.

    Attributes:
        gib: GPU memory in GiB: weights of a 7B shape are 13, and each copy as many.
        seconds: On one H100, with making the model, in two rounds. Estimates by operations and passes.
    """

    gib: float
    seconds: float


# In the order in which they run on a GPU.
ON_GPU = {
    "capture": Need(20, 30),
    "capture_images": Need(22, 65),
    "pope": Need(36, 40),
    "halueval_loglikelihood": Need(24, 20),
    "halueval_generate": Need(26, 60),
    "probes": Need(16, 45),
    "gate_cost": Need(44, 15),
    "gradient": Need(48, 40),
    "sweep": Need(26, 20),
    "pope_duplicates": Need(36, 30),
    "pope_batch8": Need(36, 30),
    "gate_cost_compiled": Need(16, 75),
}
GPU_MINUTES = 8.0


class OutOfTimeError(Exception):
    """The time of all benchmarks has ended within one."""


def run_all(
    names: Sequence[str],
    run_one: Callable[[str], None],
    *,
    free_gib: float | None = None,
    minutes: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, str]:
    """Run benchmarks, leave out those that do not fit, and go on after one that fails.

    Args:
        names: The benchmarks. On a GPU only those of `ON_GPU` run, in its order.
        run_one: Runs one and writes its results as they come.
        free_gib: The GPU's free memory in GiB; None on a CPU.
        minutes: The time for all of them; None for as long as it takes.
        clock: Seconds.

    Returns:
        Why each one that failed did.
    """
    end = None if minutes is None else clock() + 60 * minutes
    failed: dict[str, str] = {}
    order = names if free_gib is None else sorted(names, key=lambda name: _place(name))
    for name in order:
        left = None if end is None else end - clock()
        reason = why_not(name, free_gib, left)
        if reason is not None:
            print(f"{name}: left out: {reason}", flush=True)
            continue
        try:
            with time_limit(left):
                run_one(name)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"{name}: failed, going on: {failed[name]}", file=sys.stderr, flush=True)
        release_memory()
    return failed


def why_not(name: str, free_gib: float | None, seconds_left: float | None) -> str | None:
    """Why a benchmark is not run, or None."""
    need = ON_GPU.get(name)
    if free_gib is not None:
        if need is None:
            return "it has no GPU variant"
        if need.gib > free_gib:
            return f"it takes {need.gib:g} GiB of GPU memory, and {free_gib:.0f} are free"
    if seconds_left is not None:
        expected = 0.0 if need is None or free_gib is None else need.seconds
        if seconds_left <= expected:
            return f"it takes about {expected:g} s, and {max(0.0, seconds_left):.0f} s are left"
    return None


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """End the block after so many seconds of wall time, where the system has such a signal.

    Raises:
        OutOfTimeError: It has not ended before.
    """
    if seconds is None or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise OutOfTimeError(f"stopped after {seconds:.0f} s: the time of all benchmarks has ended")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def release_memory() -> None:
    """Give a benchmark's models back before the next one makes its own."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _place(name: str) -> int:
    return list(ON_GPU).index(name) if name in ON_GPU else len(ON_GPU)
