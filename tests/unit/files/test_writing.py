"""What a kill, a full disk and Ctrl-C leave of a write: the old file or the new one, and nothing beside it."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from truthgate_eval.errors import DataError, TruthGateError
from truthgate_eval.files import (
    atomic_file,
    check_writable,
    replace_folder,
    update_folder,
    write_atomic,
    write_error,
)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file becomes larger than `size` bytes: a write that fails in the kernel, for any user."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def die_in(action: Callable[[], object]) -> None:
    """Run an action that ends in SIGKILL in a process of its own."""
    child = os.fork()
    if not child:
        try:
            action()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def kill(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_what_a_killed_process_has_half_written_goes_with_the_next_write(tmp_path: Path) -> None:
    def half() -> None:
        with atomic_file(tmp_path / "a.npz") as file:
            file.write(b"half")
            file.flush()
            kill()

    write_atomic(tmp_path / "a.npz", b"old")
    (tmp_path / ".a.npz.user_own.txt").touch()
    die_in(half)
    die_in(half)
    assert (
        len(names(tmp_path)) == 3 and (tmp_path / "a.npz").read_bytes() == b"old"
    )  # the second took one away
    write_atomic(tmp_path / "b.npz", b"another")
    assert len(names(tmp_path)) == 4
    write_atomic(tmp_path / "a.npz", b"new")
    assert names(tmp_path) == [".a.npz.user_own.txt", "a.npz", "b.npz"]


def test_two_that_write_one_file_do_not_take_each_others_away(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a") as first:
        first.write(b"first")
        with atomic_file(tmp_path / "a") as second:
            second.write(b"second")
        assert (tmp_path / "a").read_bytes() == b"second"
    assert (tmp_path / "a").read_bytes() == b"first" and names(tmp_path) == ["a"]


def test_where_the_content_does_not_fit_the_check_says_so_and_nothing_is_left(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"old")
    with largest_file(1 << 15):
        with pytest.raises(TruthGateError, match=r"a cannot be written: File too large$"):
            check_writable(tmp_path / "a")
        with pytest.raises(TruthGateError, match=r"a cannot be written: File too large$"):
            write_atomic(tmp_path / "a", bytes(1 << 16))
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"old"
    check_writable(tmp_path / "a")


def make(folder: Path, content: str) -> None:
    with replace_folder(folder) as partial:
        for name in range(3):
            (partial / f"{name}").write_text(content)


def test_a_replaced_folder_is_never_half_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    make(folder, "old")
    monkeypatch.setattr(shutil, "rmtree", kill)  # the moment at which the old one begins to go
    die_in(lambda: make(folder, "new"))
    assert [(folder / f"{name}").read_text() for name in range(3)] == 3 * ["new"]
    monkeypatch.undo()
    make(folder, "newest")
    assert names(tmp_path) == ["model"]


def test_ctrl_c_between_the_old_and_the_new_folder_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "model", "old")
    replace = os.replace

    def interrupt(source: Path, target: Path) -> None:
        if target == tmp_path / "model" and "replaced" not in source.name:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "model", "new")
    assert names(tmp_path) == ["model"] and (tmp_path / "model" / "0").read_text() == "old"


@pytest.mark.parametrize("write", [replace_folder, update_folder])
@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["Python's", "safetensors'"],
)
def test_a_full_disk_is_one_line_whichever_library_meets_it(
    write: Any, error: Exception, tmp_path: Path
) -> None:
    with (
        pytest.raises(DataError, match=r"cannot write to .*set: No space left on device"),
        write(tmp_path / "set"),
    ):
        raise error
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]
    with pytest.raises(OSError, match="no such"), write(tmp_path / "set"):
        raise FileNotFoundError(2, "no such input")


def test_only_what_cannot_be_written_counts() -> None:
    assert write_error(OSError(30, "")) == "Read-only file system"
    assert write_error(ValueError("of (os error 2)")) is None and write_error(PermissionError(13, "")) is None
