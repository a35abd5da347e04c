"""JSON and JSON lines, read within bounds of size, memory and depth."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from truthgate_eval.errors import DataError, first_line
from truthgate_eval.files.regular import open_regular, read_bounded, unreadable

MAX_JSON_DEPTH = 100
# Bytes of a JSON file, and of one line of JSON lines. Results files have a few megabytes at most.
MAX_JSON_BYTES = 32 << 20
# Bytes of a file that one value of may be a whole data set: COCO's annotations of 2017 have 450 million.
MAX_DATASET_BYTES = 1 << 30
_MAX_MEMORY = 160 << 20
_SMALL = 1 << 20  # no text of so many bytes needs that much memory
# Bytes in memory that each of these signs may stand for at most, in CPython.
_MEMORY_OF_SIGN = {b"{": 232, b"[": 64, b",": 64, b":": 64}
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")  # two of them are a character beyond U+FFFF


def parse_json(content: bytes, where: str, *, most: int = MAX_JSON_BYTES, unique_names: bool = False) -> Any:
    """The value of a JSON text in UTF-8, with a byte-order mark or without one.

    Args:
        content: The text.
        where: What the message calls it: a file, or a file and a line.
        most: Bytes that it may have. Above `MAX_JSON_BYTES`, memory and depth are not bounded either.
        unique_names: Whether an object with one name twice is an error; otherwise the last one counts.

    Raises:
        DataError: The content is not JSON, is nested more than `MAX_JSON_DEPTH` levels deep, or would take
            more than 160 MiB of memory.
    """
    if len(content) > most:
        raise DataError(f"{where} is too large: it has {len(content):,} bytes, expected at most {most:,}")
    is_bounded = most <= MAX_JSON_BYTES
    if is_bounded and len(content) > _SMALL and _memory(content) > _MAX_MEMORY:
        raise DataError(f"{where} is JSON that would take more than {_MAX_MEMORY >> 20} MiB of memory")
    try:
        text = content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique if unique_names else None)
    except RecursionError as error:
        raise DataError(f"{where} is JSON that is nested too deeply to be read") from error
    except ValueError as error:  # not JSON, not UTF-8, or a number of more than 4,300 digits
        reason = error.msg if isinstance(error, json.JSONDecodeError) else first_line(error)
        raise DataError(f"{where} is cut off or not JSON: {reason}") from error
    if is_bounded and content.count(b"[") + content.count(b"{") > MAX_JSON_DEPTH:  # else it cannot be deep
        check_json_depth(value, where)
    return value


def _memory(content: bytes) -> int:
    """More bytes than a JSON text takes in memory, with its decoded text and its value."""
    # Python holds a text in 1, 2 or 4 bytes a character: as many as its widest character needs.
    if not content.isascii() or _ESCAPED_SURROGATE.search(content):
        width = 4
    else:
        width = 2 if b"\\u" in content else 1
    signs = sum(size * content.count(sign) for sign, size in _MEMORY_OF_SIGN.items())
    return (1 + 2 * width) * len(content) + signs


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        times = Counter(name for name, _ in pairs)
        twice = next(name for name in times if times[name] > 1)
        raise ValueError(f"the name {twice[:50]!r} is there twice")
    return value


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


def read_json(path: Path, *, most: int = MAX_JSON_BYTES) -> Any:
    """The value of a JSON file, see `parse_json`.

    Args:
        path: The file.
        most: Bytes that it may have.

    Raises:
        DataError: The file cannot be read, is too large, or is not JSON.
    """
    return parse_json(read_bounded(path, most), str(path), most=most)


def read_json_lines(path: Path, needed: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    r"""Line numbers, from 1, and objects of a JSON lines file in UTF-8.

    Lines end as in a text file that Python opens, with "\n", "\r\n" or "\r", and not at U+2028 or U+0085,
    which JSON strings may have inside. A byte-order mark and empty lines are skipped.

    Args:
        path: The file. It is read line by line; a line may have `MAX_JSON_BYTES`.
        needed: Names that every object must have.

    Raises:
        DataError: The file cannot be read, or a line is not such an object. The message names file and line.
    """
    with open_regular(path) as file:
        for number, line in _lines(file, path):
            if not line.removeprefix(codecs.BOM_UTF8).strip():
                continue
            where = f"{path}, line {number}"
            record = parse_json(line, where)
            fields = record if isinstance(record, dict) else {}
            missing = [name for name in needed if name not in fields]
            if missing:
                raise DataError(f"{where}: no {', '.join(missing)}")
            if not isinstance(record, dict):
                raise DataError(f"{where}: expected a JSON object, found {type(record).__name__}")
            yield number, record


def _lines(file: io.BufferedReader, path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbers and contents of a file's lines; of empty ones in a row not all, but all are counted."""
    number = 0
    while True:
        try:
            block = file.readline(MAX_JSON_BYTES + 1)
        except OSError as error:
            raise unreadable(path, error) from error
        if not block:
            return
        if len(block) > MAX_JSON_BYTES:
            raise DataError(
                f"{path}, line {number + 1} is too large: expected {MAX_JSON_BYTES:,} bytes at most"
            )
        number += 1
        if block in (b"\n", b"\r\n"):  # quickly: a file may be nothing else
            continue
        block, end = block.removesuffix(b"\n").removesuffix(b"\r"), 0
        if b"\r" not in block:
            yield number, block
            continue
        for match in re.finditer(rb"[^\r]+", block):
            number += block.count(b"\r", end, match.start())
            end = match.start()
            yield number, match[0]
        number += block.count(b"\r", end)
