"""Files written atomically, and checked before the work whose result they hold."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from truthgate_eval.errors import TruthGateError


def check_file(path: Path, *suffixes: str) -> None:
    """Raise `TruthGateError` unless a file of one of these suffixes could be written at `path`."""
    if path.suffix.lower() not in suffixes:
        raise TruthGateError(f"{path}: expected a file name that ends in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise TruthGateError(f"the folder of {path} does not exist; make it first")
    check_writable(path)


def check_writable(path: Path) -> None:
    """Raise `TruthGateError` unless a file can be made in the folder of `path`, and `path` is no folder."""
    if path.is_dir():
        raise TruthGateError(f"{path} is a folder, expected a file to write")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise TruthGateError(f"{path} cannot be written: {error.strerror}") from error


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically: an existing file is replaced as a whole or left as it was.

    Raises:
        TruthGateError: The file cannot be written.
    """
    with atomic_file(path) as file:
        file.write(content)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which takes the place of `path` when the block ends without an error.

    Raises:
        TruthGateError: The file cannot be written.
    """
    try:
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise TruthGateError(f"{path} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(partial, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(partial, path)
    except BaseException as error:
        os.unlink(partial)
        if isinstance(error, OSError):
            raise TruthGateError(f"{path} cannot be written: {error.strerror}") from error
        raise
