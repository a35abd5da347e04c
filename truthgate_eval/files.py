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

MAX_JSON_DEPTH = 100


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


def parse_json(content: bytes, where: str) -> Any:
    """The value of a JSON text in UTF-8, with a byte-order mark or without one.

    Args:
        content: The text.
        where: What the message calls it: a file, or a file and a line.

    Raises:
        DataError: The content is not JSON, or is nested deeper than Python reads.
    """
    try:
        return json.loads(content.removeprefix(codecs.BOM_UTF8).decode("utf-8"))
    except RecursionError as error:
        raise DataError(f"{where} is JSON that is nested too deeply to be read") from error
    except ValueError as error:  # not JSON, not UTF-8, or a number of more than 4,300 digits
        reason = error.msg if isinstance(error, json.JSONDecodeError) else first_line(error)
        raise DataError(f"{where} is cut off or not JSON: {reason}") from error


def check_json_depth(value: Any, where: str) -> None:
    """Raise `DataError` for a value of JSON with more than `MAX_JSON_DEPTH` levels.

    Python reads about 1,000 levels. Writing them again, or showing them, then raises RecursionError.

    Args:
        value: The value, as `json` reads it.
        where: What the message calls it.
    """
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_JSON_DEPTH + 1):
        if not level:
            return
        nested = (item.values() if isinstance(item, dict) else item for item in level)
        level = [item for items in nested for item in items if isinstance(item, dict | list)]
    raise DataError(f"{where} is JSON that is nested too deeply to be read")


def read_json(path: Path) -> Any:
    """The value of a JSON file, see `parse_json`.

    Raises:
        DataError: The file cannot be read, or is not JSON.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    return parse_json(content, str(path))


def read_json_lines(path: Path, needed: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    r"""Line numbers, from 1, and objects of a JSON lines file in UTF-8.

    Lines end as in a text file that Python opens, with "\n", "\r\n" or "\r", and not at U+2028 or U+0085,
    which JSON strings may have inside. A byte-order mark and empty lines are skipped.

    Args:
        path: The file. It is read line by line.
        needed: Names that every object must have.

    Raises:
        DataError: The file cannot be read, or a line is not such an object. The message names file and line.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    with file:
        lines = (line for block in file for line in block.rstrip(b"\r\n").split(b"\r"))
        for number, line in enumerate(lines, start=1):
            if not line.removeprefix(codecs.BOM_UTF8).strip():
                continue
            record = parse_json(line, f"{path}, line {number}")
            if line.count(b"[") + line.count(b"{") > MAX_JSON_DEPTH:  # otherwise it cannot be that deep
                check_json_depth(record, f"{path}, line {number}")
            fields = record if isinstance(record, dict) else {}
            missing = [name for name in needed if name not in fields]
            if missing:
                raise DataError(f"{path}, line {number}: no {', '.join(missing)}")
            if not isinstance(record, dict):
                raise DataError(
                    f"{path}, line {number}: expected a JSON object, found {type(record).__name__}"
                )
            yield number, record
