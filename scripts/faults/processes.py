"""Commands of `truthgate` as processes of their own, forked from one that has imported what they need.

A real command spends twenty seconds on imports and on the index of lm-eval's 13,000 task files before it
does anything. Here the parent imports torch, transformers and lm-eval, reads that index, and forks for each
command; the child calls the program's `main` with its arguments. Signals, files and exit statuses are those
of a real process. A fork copies the calling thread only, so `import_everything` refuses to go on where an
import has started another one.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Read by torch, numpy and pyarrow when they are imported: no thread beside the one that forks.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
_MODULES = (
    "transformers.models.llama.modeling_llama",
    "truthgate_eval.cli.probe_jobs",
    "truthgate_eval.cli.attribution_jobs",
    "truthgate_eval.cli.sweep",
    "truthgate_eval.harness.lm_eval.evaluator",
    "truthgate_eval.harness.lm_eval.probing",
    "truthgate_eval.harness.lm_eval.answer_reader",
    "truthgate_eval.probing.run",
    "truthgate_eval.gating.sweep_plot",
    "truthgate_eval.analysis.heads.heat_map",
    "truthgate_eval.analysis.leaderboard.terminal",
    "truthgate_eval.export.adapter",
    "truthgate_eval.export.checkpoint",
    "truthgate_eval.data.poll",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "pyarrow.parquet",
)
_LONGEST = 900.0  # seconds of a command, by the clock


class FaultError(Exception):
    """A promise that does not hold; the message says what was found."""


@dataclass
class Ended:
    """A command that has ended.

    Attributes:
        status: Its exit status, or minus the signal that ended it.
        seconds: How long it was on the processor.
        out: What it wrote on stdout.
        err: What it wrote on stderr.
    """

    status: int
    seconds: float
    out: str
    err: str

    @property
    def last_line(self) -> str:
        """The last line on stderr, after the last rewrite of a progress bar in it."""
        lines = [line.rpartition("\r")[2].strip() for line in self.err.splitlines()]
        return next((line for line in reversed(lines) if line), "")

    def require_success(self) -> Ended:
        """Itself.

        Raises:
            FaultError: The command has failed.
        """
        if self.status:
            raise FaultError(f"the next start ended with status {self.status}: {self.last_line}")
        return self

    def require_one_line(self) -> str:
        """The error that a command has ended with, as one line.

        Raises:
            FaultError: It has not failed, or there is a traceback, or no line of ours.
        """
        if self.status == 0:
            raise FaultError(f"ended as if nothing were wrong: {self.last_line}")
        if "Traceback" in self.err or not self.last_line.startswith("error: "):
            raise FaultError(f"status {self.status} without a line of ours: {self.err[-800:]}")
        return self.last_line.removeprefix("error: ")


class Command:
    """A running command of `truthgate`."""

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        before: Callable[[], object] | None = None,
    ) -> None:
        """Start it.

        Args:
            arguments: Those after `truthgate`.
            folder: Its working directory.
            environment: Variables beside this process's own.
            before: Called in the new process before the command, to put a fault into its libraries.
        """
        self._streams = [tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") for _ in range(2)]
        self._started = time.monotonic()
        self.pid = os.fork()
        if not self.pid:
            _run(arguments, folder, environment or {}, before, [file.fileno() for file in self._streams])

    def wait_until(self, moment: float) -> bool:
        """Wait for a moment of its life; False where it had ended before.

        Args:
            moment: Seconds that it has been on the processor. On a processor of its own that is the time
                since its start; where others work, too, the moment is still at the same place in its work.
        """
        while not self._has_ended():
            left = moment - _seconds_on_processor(self.pid)
            if left <= 0:
                return True
            time.sleep(min(left, 0.01))
        return False

    def signal(self, number: signal.Signals, moment: float) -> bool:
        """Send a signal at a moment of its life (`wait_until`); False where it had ended before."""
        if not self.wait_until(moment):
            return False
        os.kill(self.pid, number)
        return True

    def wait(self) -> Ended:
        """Wait for its end; it is killed after a quarter of an hour."""
        while not self._has_ended():
            if time.monotonic() - self._started > _LONGEST:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.01)
        seconds, texts = _seconds_on_processor(self.pid), []
        _, status = os.waitpid(self.pid, 0)
        for file in self._streams:
            file.seek(0)
            texts.append(file.read())
            file.close()
        return Ended(os.waitstatus_to_exitcode(status), seconds, *texts)

    def _has_ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def run(
    arguments: Sequence[str],
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
    before: Callable[[], object] | None = None,
) -> Ended:
    """Run a command to its end; see `Command`."""
    return Command(arguments, folder, environment=environment, before=before).wait()


def _seconds_on_processor(pid: int) -> float:
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def in_own_process(function: Callable[[], object]) -> None:
    """Call a function in a process of its own, so that it starts no thread in this one.

    Raises:
        FaultError: It has failed.
    """
    child = os.fork()
    if not child:
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        raise FaultError("a preparation has failed")


def import_everything() -> None:
    """Import what commands need, and read lm-eval's index of tasks.

    Raises:
        FaultError: Another thread runs now, so that a fork would not be a copy of the whole process.
    """
    for name in _MODULES:
        importlib.import_module(name)
    _read_tasks_once()
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise FaultError(f"the imports have started {threads - 1} threads: start it as scripts.faults does")


def _read_tasks_once() -> None:
    """Let every command have lm-eval's index of the task files as it is in memory."""
    from lm_eval.tasks._index import TaskIndex

    from truthgate_eval.harness.lm_eval.task_index import task_manager

    build: Callable[..., Any] = TaskIndex.build
    known: dict[str, dict[str, Any]] = {}

    def build_once(paths: Sequence[Path], **options: Any) -> dict[str, Any]:
        key = repr((list(map(str, paths)), options))
        if key not in known:
            known[key] = build(paths, **options)
        return dict(known[key])

    TaskIndex.build = staticmethod(build_once)
    task_manager(None)


def _run(
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    before: Callable[[], object] | None,
    streams: Sequence[int],
) -> None:
    """The child's life. It never returns."""
    code = 1
    try:
        # As in a terminal: what a shell starts in the background ignores Ctrl-C, and its children do, too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(streams[0], 1)
        os.dup2(streams[1], 2)
        os.chdir(folder)
        os.environ.update(environment)
        if before is not None:
            before()
        sys.argv = ["truthgate", *arguments]
        from truthgate_eval.cli.main import main

        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # as Python prints it at the end of a process
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
