"""Run steps, two at a time and each once; every command and its time is printed and recorded.

FOLDER/steps/NAME.json has the command, when it ended and how long it took. It is written before the command and completed
after it, so that an interrupted step is not taken for a finished one. FOLDER/logs/NAME.txt is what the step printed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from results_plan import Step

from truthgate_eval.errors import TruthGateError
from truthgate_eval.files import write_atomic

HERE = Path(__file__).parent.resolve()
Record = dict[str, Any]
# There are many short steps: the process that they are forked from imports what all of them need.
_IMPORTED = (
    "truthgate_eval.harness.lm_eval.probing", "truthgate_eval.harness.lmms_eval.probing", "truthgate_eval.probing.run",
)  # fmt: skip
# One thread per step, since two run at a time; no hub.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class StudyFolder:
    """The folder of a study: what its steps wrote, and which are done."""

    def __init__(self, folder: Path) -> None:
        """Open or make it."""
        self.folder = folder
        for name in ("steps", "logs"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def run(self, stages: Sequence[Sequence[Step]], *, processes: int = 2) -> list[str]:
        """Run what is not done, stage by stage.

        Returns:
            The names of the steps that were run.

        Raises:
            TruthGateError: A step failed; its log is named.
        """
        os.environ.update(_ENVIRONMENT)
        done: list[str] = []
        for stage in stages:
            waiting = [step for step in stage if not self.is_done(step)]
            with ThreadPoolExecutor(processes) as pool:
                failures = [failure for failure in pool.map(self._run, waiting) if failure]
            if failures:
                raise TruthGateError("; ".join(failures))
            done += [step.name for step in waiting]
        return done

    def is_done(self, step: Step) -> bool:
        """Whether a step with this command was completed after the steps whose output it reads."""
        record = self.record(step.name)
        return (
            "seconds" in record
            and record == {**record, **self._begun(step)}
            and all((self.folder / made).exists() for made in step.makes)
        )

    def record(self, name: str) -> Record:
        """The record of a step; empty if it never began."""
        file = self.folder / "steps" / f"{name}.json"
        return json.loads(file.read_bytes()) if file.is_file() else {}

    def _begun(self, step: Step) -> Record:
        """What identifies this run of the step: its command, and when the steps that it needs were finished."""
        needs = {name: self.record(name).get("finished") for name in step.needs}
        return {"command": command_line(step), "needs": needs}

    def _run(self, step: Step) -> str | None:
        """Run one step; returns an error message if it failed."""
        begun = self._begun(step)
        # A command that began in the same way continues by itself. Otherwise its old output is removed.
        if {key: self.record(step.name).get(key) for key in begun} != begun or not self.record(step.name):
            for made in step.makes:
                _remove(self.folder / made)
        self._write(step.name, begun)
        start = time.monotonic()
        log = self.folder / "logs" / f"{step.name}.txt"
        data = str((self.folder / step.data).absolute()) if step.data else None
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(_IMPORTED))
        process = context.Process(target=_work, args=(argv_of(step), self.folder, log, data))
        process.start()
        process.join()
        seconds = time.monotonic() - start
        if process.exitcode:
            return f"the step {step.name} failed, see {log}"
        self._write(step.name, {**begun, "seconds": round(seconds, 1), "finished": time.time_ns()})
        sys.stdout.write(f"{seconds:6.0f} s  $ {command_line(step)}\n")
        sys.stdout.flush()
        return None

    def _write(self, name: str, record: Record) -> None:
        write_atomic(self.folder / "steps" / f"{name}.json", (json.dumps(record, indent=1) + "\n").encode())


def argv_of(step: Step) -> list[str]:
    """The file or module of a step's program, and its arguments."""
    program = "truthgate_eval" if step.program == "truthgate" else str(HERE / step.program)
    return [program, *step.words]


def _work(words: list[str], folder: Path, log: Path, data: str | None) -> None:
    """Run a command in a process of its own, as `python PROGRAM ...` or `python -m MODULE ...` would."""
    with log.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(folder)
    if data:
        os.environ["TRUTHGATE_DATA"] = data
    sys.argv = words
    if words[0].endswith(".py"):
        sys.path.insert(0, str(HERE))
        runpy.run_path(words[0], run_name="__main__")
    else:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def command_line(step: Step) -> str:
    """The command as a user would type it in the study's folder."""
    program = step.program if step.program == "truthgate" else f"python studies/{step.program}"
    data = f"TRUTHGATE_DATA={step.data} " if step.data else ""
    return f"{data}{program} {shlex.join(step.words)}"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
