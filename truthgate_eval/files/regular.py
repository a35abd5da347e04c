"""Regular files, opened and read within bounds: a FIFO or a device is refused before it is opened."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from truthgate_eval.errors import DataError, first_line

# Without O_NONBLOCK, opening a FIFO waits until somebody writes to it.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_BLOCK = 1 << 20
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading.

    A link is followed, since the caches of hubs consist of links; what it leads to must be a regular file.

    Raises:
        DataError: The path is anything else than a regular file, or cannot be read.

    Example:
        >>> open_regular(Path("/dev"))
        Traceback (most recent call last):
        truthgate_eval.errors.DataError: cannot read /dev: it is a folder, expected a file
    """
    try:
        _check_kind(path, os.stat(path).st_mode)  # a device can act when it is opened
        descriptor = os.open(path, _FLAGS)
        try:
            _check_kind(path, os.fstat(descriptor).st_mode)  # the path may lead to another file by now
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> DataError:
    """Our error for a file that cannot be read."""
    return DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or first_line(error)}")


def _check_kind(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise DataError(f"cannot read {path}: it is {kind}, expected a file")


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a regular file of at most so many bytes.

    Raises:
        DataError: The file is larger, or cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise DataError(f"{path} is too large: it has {size:,} bytes, expected at most {most:,}")
        try:
            if size:  # `read` allocates what it is asked for
                content = file.read(size + 1)
            else:  # also that of files in /proc
                content = b"".join(_blocks(file, most))
        except OSError as error:
            raise unreadable(path, error) from error
    if len(content) > (size or most):
        raise DataError(
            f"{path} is too large, or was written to while it was read: it has more than "
            f"{size or most:,} bytes"
        )
    return content


def read_text(path: Path, most: int = 1 << 20) -> str:
    """The text of a file in UTF-8, with a byte-order mark or without one; every line ends with a line feed.

    Args:
        path: The file.
        most: Bytes that it may have.

    Raises:
        DataError: The file is larger, cannot be read, or is no such text.
    """
    content = io.BytesIO(read_bounded(path, most))
    try:
        return io.TextIOWrapper(content, encoding="utf-8-sig").read()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text") from error


def _blocks(file: io.BufferedReader, most: int) -> Iterator[bytes]:
    """A file's content in blocks, to the first that ends beyond so many bytes."""
    found = 0
    while found <= most and (block := file.read(min(_BLOCK, most + 1 - found))):
        found += len(block)
        yield block


def sha256(path: Path) -> str:
    """The SHA-256 digest of a file's content, in hexadecimal.

    Raises:
        DataError: The path is no regular file, or cannot be read.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        try:
            for block in iter(lambda: file.read(_BLOCK), b""):
                digest.update(block)
        except OSError as error:
            raise unreadable(path, error) from error
    return digest.hexdigest()
