"""Files and folders: atomic writes, locks between processes, hashes, and JSON lines."""

from __future__ import annotations

import codecs
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from truthgate_eval.errors import DataError, TruthGateError, first_line

log = logging.getLogger(__name__)


def check_file(path: Path, *suffixes: str) -> None:
    """Raise `TruthGateError` unless a file of one of these suffixes could be written at `path`."""
    if path.suffix.lower() not in suffixes:
        raise TruthGateError(f"{path}: expected a file name that ends in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise TruthGateError(f"the folder of {path} does not exist; make it first")
    if path.is_dir():
        raise TruthGateError(f"{path} is a folder, expected a file to write")


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically: an existing file is replaced as a whole or left as it was.

    Raises:
        TruthGateError: The file cannot be written.
    """
    try:
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise TruthGateError(f"{path} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(partial, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(partial, path)
    except BaseException as error:
        os.unlink(partial)
        if isinstance(error, OSError):
            raise TruthGateError(f"{path} cannot be written: {error.strerror}") from error
        raise


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Let one process at a time write to `folder`; another one logs that it waits, and waits.

    The lock is on the file `.NAME.lock` beside the folder. The file stays, but the operating system
    releases the lock when the process ends, however it ends. A thread that has the lock can take it again.

    Raises:
        DataError: The file cannot be made.
    """
    folder = folder.absolute()
    # With `is_singleton`, an inner block for the same folder gets the same object, which counts its holders.
    lock = FileLock(folder.parent / f".{folder.name}.lock", is_singleton=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.warning("waiting for another process that is writing %s", folder)
            lock.acquire()
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def build_once(
    folder: Path, is_built: Callable[[], bool], build: Callable[[], object], announcement: str
) -> None:
    """Build a cached folder unless it is built already, in one process only.

    A second process waits for the first one and then finds the folder built.

    Args:
        folder: What is built.
        is_built: Whether the folder is complete and up to date.
        build: Builds it.
        announcement: Logged before building, since it can take half a minute.

    Raises:
        DataError: The folder cannot be written.
    """
    if is_built():
        return
    with folder_lock(folder):
        if not is_built():
            log.warning(announcement)
            build()


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` when the block ends without an error.

    Raises:
        DataError: The folder cannot be written.
    """
    with folder_lock(folder):
        partial = _temporary_folder(folder.parent, f".{folder.name}.")
        try:
            yield partial
            partial.chmod(0o755)  # mkdtemp makes folders that only their owner can read
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def update_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder whose entries move into `folder` when the block ends without an error.

    Entries of the same name are replaced, others stay.

    Raises:
        DataError: The folder cannot be written.
    """
    with folder_lock(folder):
        partial = _temporary_folder(folder, ".partial.")
        try:
            yield partial
            for path in sorted(partial.iterdir()):
                target = folder / path.name
                if target.is_dir():  # os.replace does not replace a folder that has content
                    shutil.rmtree(target)
                os.replace(path, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _temporary_folder(parent: Path, prefix: str) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
    except OSError as error:
        raise DataError(f"cannot write to {parent}: {error.strerror or error}") from error


def sha256(path: Path) -> str:
    """The SHA-256 digest of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def read_json_lines(path: Path, needed: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    r"""Line numbers, from 1, and objects of a JSON lines file in UTF-8.

    Only "\n" ends a line: JSON strings may have U+2028 or U+0085 inside, at which `str.splitlines` splits. A
    byte-order mark and empty lines are skipped.

    Args:
        path: The file. It is read line by line.
        needed: Names that every object must have.

    Raises:
        DataError: The file cannot be read, or a line is not such an object. The message names file and line.
    """
    try:
        lines = path.open("rb")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    with lines:
        for number, line in enumerate(lines, start=1):
            content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not content.strip():
                continue
            try:
                record = json.loads(content.decode("utf-8"))
            except ValueError as error:  # not JSON, or not UTF-8
                reason = error.msg if isinstance(error, json.JSONDecodeError) else first_line(error)
                raise DataError(f"{path}, line {number} is cut off or not JSON: {reason}") from error
            fields = record if isinstance(record, dict) else {}
            missing = [name for name in needed if name not in fields]
            if missing:
                raise DataError(f"{path}, line {number}: no {', '.join(missing)}")
            if not isinstance(record, dict):
                raise DataError(
                    f"{path}, line {number}: expected a JSON object, found {type(record).__name__}"
                )
            yield number, record
