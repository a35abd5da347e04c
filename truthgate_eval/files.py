"""Files: checked before any work, written whole or not at all, hashed, and read as JSON lines."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from truthgate_eval.errors import DataError, TruthGateError


def check_file(path: Path, *suffixes: str) -> None:
    """Raise `TruthGateError` unless a file of one of these suffixes could be written at `path`."""
    if path.suffix.lower() not in suffixes:
        raise TruthGateError(f"{path}: expected a file name that ends in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise TruthGateError(f"the folder of {path} does not exist; make it first")
    if path.is_dir():
        raise TruthGateError(f"{path} is a folder, expected a file to write")


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path`; a file that is there is replaced at once, or stays as it was."""
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
def replace_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder whose content moves into `folder` when the block ends well."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder, prefix=".partial."))
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror or error}") from error
    try:
        yield partial
        for path in sorted(partial.iterdir()):
            target = folder / path.name
            if target.is_dir():  # os.replace does not replace a folder that has content
                shutil.rmtree(target)
            os.replace(path, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sha256(path: Path) -> str:
    """A file's hash, for the provenance."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def read_json_lines(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and records of a JSON lines file, each checked to have the needed names.

    Raises:
        DataError: The file cannot be read, or a line is not such a record.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error.msg}") from error
        missing = [name for name in needed if not isinstance(record, dict) or name not in record]
        if missing:
            raise DataError(f"{path}, line {number}: no {', '.join(missing)}")
        yield number, record
