"""One reader of files that may come from strangers, as the fuzz tests use it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from truthgate_eval.errors import TruthGateError


@dataclass(frozen=True)
class Reader:
    """One reader.

    Attributes:
        file: The file's path inside the folder.
        seeds: Contents of valid files.
        read: Reads the file at the first path, in the folder at the second.
        values: The values of JSON that the first content is made of, for changes that keep it JSON; None where
            it is none.
        write: Content out of such values.
        prepare: Makes the other files that the folder needs.
    """

    file: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path, Path], object]
    values: Callable[[], Any] | None = None
    write: Callable[[Any], bytes] = lambda value: json.dumps(value).encode()
    prepare: Callable[[Path], object] = lambda _: None


def read_content(reader: Reader, content: bytes) -> str | None:
    """Read a file of that content; the message of our error, or None for a valid object."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        reader.prepare(folder)
        file = folder / reader.file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        try:
            reader.read(file, folder)
        except TruthGateError as error:
            return str(error)
    return None
