"""Files written atomically, and checked before the work whose result they hold."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from truthgate_eval.errors import TruthGateError

try:
    import fcntl
except ImportError:  # Windows, which removes no file that is open, so that no lock is needed
    fcntl = None  # type: ignore[assignment]

_PARTIAL = ".partial"  # ends the names of temporary files
# What `check_writable` writes: a full disk takes new files, but no content.
_LEAST_FREE = 1 << 16
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def check_file(path: Path, *suffixes: str) -> None:
    """Raise `TruthGateError` unless a file of one of these suffixes could be written at `path`."""
    if path.suffix.lower() not in suffixes:
        raise TruthGateError(f"{path}: expected a file name that ends in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise TruthGateError(f"the folder of {path} does not exist; make it first")
    check_writable(path)


def check_writable(path: Path) -> None:
    """Raise `TruthGateError` unless 64 KiB can be written beside `path`, and `path` is no folder."""
    if path.is_dir():
        raise TruthGateError(f"{path} is a folder, expected a file to write")
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(bytes(_LEAST_FREE))
    except OSError as error:
        raise TruthGateError(f"{path} cannot be written: {error.strerror}") from error


def check_folder(folder: Path) -> Path:
    """A folder, which need not exist yet, if files could be written in it.

    Raises:
        TruthGateError: They could not.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(bytes(_LEAST_FREE))
    except OSError as error:
        raise TruthGateError(f"{folder} cannot be written: {error.strerror}") from error
    return folder


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

    Those that killed processes have left of the same path are removed first. One that another process is
    writing is locked by it, and stays.

    Raises:
        TruthGateError: The file cannot be written.
    """
    try:
        _remove_abandoned(path)
        handle, partial = _locked_file(path)
    except OSError as error:
        raise TruthGateError(f"{path} cannot be written: {error.strerror}") from error
    try:
        # A second descriptor keeps the lock when the file is closed, and until it has its name.
        lock = None if fcntl is None else os.dup(handle)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
            os.chmod(partial, 0o644)  # mkstemp makes files that only their owner can read
            os.replace(partial, path)
        finally:
            if lock is not None:
                os.close(lock)
    except BaseException as error:
        with suppress(FileNotFoundError):  # it has its name, and Ctrl-C came then
            os.unlink(partial)
        if isinstance(error, OSError):
            raise TruthGateError(f"{path} cannot be written: {error.strerror}") from error
        raise


def write_error(error: BaseException) -> str | None:
    """Why a file could not be written, by an error of any library; None where it is another error.

    A full disk, a quota, a read-only file system and a file that is too large count. Libraries in Rust, such
    as safetensors, have error classes of their own with the number in the message.

    Example:
        >>> write_error(RuntimeError("I/O error: No space left on device (os error 28)"))
        'No space left on device'
        >>> write_error(FileNotFoundError(2, "No such file or directory"))
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := re.search(r"\(os error (\d{1,5})\)", str(error))):
        number = int(found[1])
    return os.strerror(number) if number in _WRITE_ERRORS else None


def _locked_file(path: Path) -> tuple[int, str]:
    """Descriptor and name of a new temporary file for `path`, which this process has locked."""
    while True:
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_PARTIAL)
        with suppress(OSError):  # a file system without locks: nobody removes its temporary files
            _lock(handle)
        if os.path.exists(partial):
            return handle, partial
        os.close(handle)  # between the two lines another process has taken it for an abandoned one


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files for `path` whose processes have ended."""
    abandoned = re.compile(re.escape(f".{path.name}.") + r"\w{8}" + re.escape(_PARTIAL))
    for found in path.parent.iterdir():
        if not abandoned.fullmatch(found.name) or not found.is_file():
            continue
        with suppress(OSError):  # in use, or removed by another process
            handle = os.open(found, os.O_RDWR)
            try:
                _lock(handle)
                os.unlink(found)
            finally:
                os.close(handle)


def _lock(handle: int) -> None:
    """Lock an open file until all of its descriptors are closed.

    Raises:
        OSError: Another process has locked it, or the file system has no locks.
    """
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
