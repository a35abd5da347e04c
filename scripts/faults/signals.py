"""SIGKILL and Ctrl-C at random moments, and the start after them."""

from __future__ import annotations

import random
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path

from scripts.faults.commands import Disturbed, write_often
from scripts.faults.processes import Command, Ended, FaultError


@dataclass
class Tally:
    """What became of a fault that was injected many times.

    Attributes:
        fault: Its name.
        model: The model of the command.
        tried: How many times.
        survived: After how many of them all was right.
        observed: What was seen, by its number.
        failures: What was wrong.
        lines: The error lines that were printed.
    """

    fault: str
    model: str
    tried: int = 0
    survived: int = 0
    observed: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def see(self, what: str) -> None:
        """Count something that was seen."""
        self.observed[what] = self.observed.get(what, 0) + 1

    def add(self, case: str, failure: str | None) -> None:
        """Count one try."""
        self.tried += 1
        self.survived += failure is None
        if failure is not None:
            self.failures.append(f"{case}: {failure}")
            print(f"  NOT SURVIVED {self.fault}, {case}: {failure}", flush=True)


def kill_again_and_again(command: Disturbed, kills: int, seed: int, work: Path) -> Tally:
    """Kill a command at random moments; a third of the next starts are killed as well.

    Args:
        command: The command.
        kills: How many cases.
        seed: Of the moments, which are uniform from the start of the process to the undisturbed run's end.
        work: A folder for the cases.
    """
    tally = Tally(f"SIGKILL at a random moment of `{command.name}`", command.model)
    rng = random.Random(f"{command.name}:{seed}")
    while tally.tried < kills:
        folder = _fresh(command, work / f"{command.name}-kill")
        count = 2 if rng.random() < 1 / 3 else 1
        moments = [rng.uniform(0, command.undisturbed.seconds) for _ in range(count)]
        try:
            if not _kill(command, folder, moments[0], tally):
                tally.see("had ended before")
                continue
            if len(moments) > 1 and _kill(command, folder, moments[1], tally):
                tally.see("killed twice")
            _continue(command, folder, tally)
            failure = None
        except FaultError as error:
            failure = str(error)
        tally.add(f"{', '.join(f'{moment:.3f} s' for moment in moments)}", failure)
    return tally


def interrupt(command: Disturbed, times: int, seed: int, work: Path) -> Tally:
    """Send SIGINT, as Ctrl-C does, at random moments; arguments as in `kill_again_and_again`."""
    tally = Tally(f"Ctrl-C at a random moment of `{command.name}`", command.model)
    rng = random.Random(f"{command.name}:interrupt:{seed}")
    while tally.tried < times:
        folder = _fresh(command, work / f"{command.name}-interrupt")
        # Not in the first hundredth of a second, in which a real process has not reached Python's first line.
        moment = rng.uniform(0.01, command.undisturbed.seconds)
        try:
            running = Command(command.arguments, folder, before=write_often)
            sent = running.signal(signal.SIGINT, moment)
            ended = running.wait()
            if not sent:
                tally.see("had ended before")
                continue
            _check_interrupted(ended, moment)
            tally.see("aborted" if ended.status else "ended within a second")
            has_result = command.check_after_fault(folder)
            tally.see("result complete" if has_result else "no result yet")
            _continue(command, folder, tally)
            failure = None
        except FaultError as error:
            failure = str(error)
        tally.add(f"{moment:.3f} s", failure)
    return tally


def _fresh(command: Disturbed, folder: Path) -> Path:
    """The folder, with what the command needs and nothing of an earlier try."""
    shutil.rmtree(folder, ignore_errors=True)
    command.prepare(folder)
    return folder


def _kill(command: Disturbed, folder: Path, moment: float, tally: Tally) -> bool:
    """Start and kill; False where the command had ended before."""
    running = Command(command.arguments, folder, before=write_often)
    running.signal(signal.SIGKILL, moment)
    ended = running.wait()
    has_result = command.check_after_fault(folder)
    if ended.status != -signal.SIGKILL:
        return False
    temporary = any(path.name.startswith(".") for path in folder.rglob("*"))
    tally.see("result complete" if has_result else "no result yet")
    if temporary:
        tally.see("in the middle of a write")
    return True


def _continue(command: Disturbed, folder: Path, tally: Tally) -> None:
    ended = command.run(folder).require_success()
    command.check(folder)
    if "have run already" in ended.err or "(from before)" in ended.err:
        tally.see("next start continued")


def _check_interrupted(ended: Ended, moment: float) -> None:
    if ended.status == 0 and ended.seconds - moment > 1:
        raise FaultError(f"it worked on for {ended.seconds - moment:.1f} s, to its end")
    if "Traceback" in ended.err or not (ended.status == 0 or ended.last_line.startswith("Aborted")):
        raise FaultError(f"Ctrl-C ended with status {ended.status} and {ended.err[-800:]!r}")
