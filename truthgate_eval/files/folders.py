"""Folders that are written as a whole, by one process at a time."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from truthgate_eval.errors import DataError
from truthgate_eval.files.writing import write_error

log = logging.getLogger(__name__)

_PARTIAL = ".partial"  # ends the names of temporary folders


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

    One that a process left behind when it was killed is removed first.

    Raises:
        DataError: The folder cannot be written.
    """
    with folder_lock(folder), _one_line_for(folder):
        partial = _temporary_folder(folder.parent, folder.name)
        old = partial.with_name(f".{folder.name}.replaced{_PARTIAL}")
        try:
            yield partial
            partial.chmod(0o755)  # mkdtemp makes folders that only their owner can read
            try:
                # No folder takes another's place. One that is removed where it is may be cut short by a kill.
                if folder.is_dir():
                    os.replace(folder, old)
                os.replace(partial, folder)
            except BaseException:  # Ctrl-C between the two, too
                if old.is_dir() and not folder.exists():
                    os.replace(old, folder)
                raise
        finally:
            for path in (partial, old):
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def update_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder whose entries move into `folder` when the block ends without an error.

    Entries of the same name are replaced, others stay.

    Raises:
        DataError: The folder cannot be written.
    """
    with folder_lock(folder), _one_line_for(folder):
        partial = _temporary_folder(folder, "update")
        try:
            yield partial
            for path in sorted(partial.iterdir()):
                target = folder / path.name
                if target.is_dir():  # os.replace does not replace a folder that has content
                    shutil.rmtree(target)
                os.replace(path, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _one_line_for(folder: Path) -> Iterator[None]:
    """Say of any library's error why the folder cannot be written."""
    try:
        yield
    except Exception as error:
        reason = write_error(error)
        if reason is None:
            raise
        raise DataError(f"cannot write to {folder}: {reason}") from error


def _temporary_folder(parent: Path, name: str) -> Path:
    """A hidden folder for `name`, in place of those that killed processes left; call it with the lock."""
    abandoned = re.compile(re.escape(f".{name}.") + r"\w{8}" + re.escape(_PARTIAL))
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for path in parent.iterdir():
            if abandoned.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
        return Path(tempfile.mkdtemp(dir=parent, prefix=f".{name}.", suffix=_PARTIAL))
    except OSError as error:
        raise DataError(f"cannot write to {parent}: {error.strerror or error}") from error
