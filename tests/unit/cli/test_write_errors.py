"""What ends a command below its own error handling is one line all the same."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.command_line import truthgate

from truthgate_eval.cli import main as cli


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "b\x1b.txt"), r"error: b\x1b.txt cannot be written: No space left on device"),
        (RuntimeError("I/O error (os error 30)"), "error: a file cannot be written: Read-only file system"),
        (KeyboardInterrupt(), "Aborted!"),
    ],
    ids=["a full disk", "of a library in Rust", "Ctrl-C"],
)  # fmt: skip
def test_it_is_one_line(error: BaseException, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    done = truthgate("doctor")
    assert (done.returncode, done.stderr) == (1, f"{line}\n")


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(ValueError, match="a mistake of ours"):
        truthgate("doctor")
