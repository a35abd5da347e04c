"""The header of a safetensors file, checked against the file's size.

The format: the header's length in 8 bytes (little-endian), the header in JSON (for each tensor its dtype,
shape, and where its bytes begin and end behind the header), the bytes.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truthgate_eval.errors import DataError, shorten
from truthgate_eval.files.json_text import MAX_JSON_BYTES, parse_json
from truthgate_eval.files.regular import open_regular, unreadable

# Bytes of a number, for the dtypes whose tensors are read.
FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_METADATA = "__metadata__"
_MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file.

    Attributes:
        dtype: In the format's words, such as `BF16`.
        shape: Its shape.
        begin: Where its bytes begin in the file.
        end: Where they end.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_safetensors_header(path: Path) -> tuple[dict[str, TensorEntry], dict[str, Any]]:
    """The tensors of a file by name, without their bytes, and the file's metadata.

    Raises:
        DataError: The file cannot be read, its header does not fit its size, or a name is there twice.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            length = int.from_bytes(file.read(8), "little")
            if length > min(MAX_JSON_BYTES, size - 8):
                raise DataError(f"{path} is cut off or no safetensors file")
            content = file.read(length)
        except OSError as error:
            raise unreadable(path, error) from error
    header = parse_json(content, f"the header of {path}", unique_names=True)
    if not isinstance(header, dict):
        raise DataError(f"{path} has a header that is no JSON object")
    metadata = header.pop(_METADATA, None) or {}
    if not isinstance(metadata, dict):
        raise DataError(f"{path} has metadata that are {shorten(metadata)}, expected an object")
    return {name: _entry(path, name, value, 8 + length, size) for name, value in header.items()}, metadata


def _entry(path: Path, name: str, value: Any, start: int, size: int) -> TensorEntry:
    """One entry of a header, checked.

    Args:
        path: The file, for messages.
        name: The tensor.
        value: What the header says of it.
        start: Where the header ends.
        size: The file's size.
    """
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
        numbers = [*shape, begin, end]
        good = isinstance(dtype, str) and len(shape) <= _MAX_DIMENSIONS
        good = good and all(type(n) is int and 0 <= n < 1 << 63 for n in numbers)
        good = good and begin <= end <= size - start
        if good and dtype in FLOAT_BYTES:
            good = end - begin == math.prod(shape) * FLOAT_BYTES[dtype]
    except (TypeError, ValueError, KeyError):
        good = False
    if not good:
        raise DataError(
            f"{path}: tensor {name[:200]} does not fit the file ({shorten(value)}); fetch the file again"
        )
    return TensorEntry(dtype, tuple(shape), start + begin, start + end)
