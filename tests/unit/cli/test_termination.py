"""A command that is told to end removes what it has half written, and what an earlier one could not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.command_line import truthgate

from truthgate_eval.cli import main as cli
from truthgate_eval.files import replace_folder

WRITING = """
import time
from pathlib import Path
from truthgate_eval.cli.console import exit_on_termination
from truthgate_eval.files import replace_folder
with exit_on_termination(), replace_folder(Path("out")) as partial:
    (partial / "weights").write_text("x")
    print("ready", flush=True)
    time.sleep(60)
"""


def end_while_writing(folder: Path, number: signal.Signals) -> int:
    """The exit status of a process that gets a signal while it writes the folder `out`."""
    command = [sys.executable, "-c", WRITING]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(number)
    return process.returncode


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_sigterm_removes_the_temporary_folder(tmp_path: Path) -> None:
    assert end_while_writing(tmp_path, signal.SIGTERM) == 143
    assert left(tmp_path) == []


def test_the_next_process_removes_what_a_killed_one_left_and_nothing_else(tmp_path: Path) -> None:
    assert end_while_writing(tmp_path, signal.SIGKILL) == -9
    [abandoned] = left(tmp_path)
    assert abandoned.startswith(".out.") and (tmp_path / abandoned / "weights").is_file()
    mine = [".out.backup12", ".out.mine.partial", ".other.abcdefgh.partial", "out.abcdefgh.partial"]
    for name in mine:
        (tmp_path / name).mkdir()
    with replace_folder(tmp_path / "out") as partial:
        (partial / "weights").write_text("y")
    assert left(tmp_path) == sorted([*mine, "out"])


def test_every_command_ends_so(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def command() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(cli, "app", command)
    assert truthgate("export").returncode == 143
    assert signal.getsignal(signal.SIGTERM) is before
