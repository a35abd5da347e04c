"""What ends a command below its own error handling is one line all the same."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.command_line import truthgate

from truthgate_eval.cli import main as cli
from truthgate_eval.gating.scores import TruthScores


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "b\x1b.txt"), r"error: b\x1b.txt cannot be written: No space left on device"),
        (RuntimeError("I/O error (os error 30)"), "error: a file cannot be written: Read-only file system"),
    ],
    ids=["a full disk", "of a library in Rust"],
)  # fmt: skip
def test_it_is_one_line(error: BaseException, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    done = truthgate("doctor")
    assert (done.returncode, done.stderr) == (1, f"{line}\n")


def test_ctrl_c_is_one_line_before_a_command_and_within_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(TruthScores, "resolve", fail)
        within = truthgate("show", "a.npz")
    monkeypatch.setattr(cli, "app", fail)
    before = truthgate("show", "a.npz")
    assert [(done.returncode, done.stderr) for done in (within, before)] == [(130, "Aborted!\n")] * 2


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(ValueError, match="a mistake of ours"):
        truthgate("doctor")
