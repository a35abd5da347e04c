"""Single tensors of a safetensors file, read and replaced in place; the rest of the file is not touched.

The format: the header's length in 8 bytes (little-endian), the header in JSON (for each tensor its dtype,
shape, and where its bytes begin and end behind the header), the bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from truthgate_eval.errors import ModelError, shorten
from truthgate_eval.files import parse_json

# The floating-point types in which a gate can be multiplied; quantized checkpoints have others.
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_METADATA = "__metadata__"
_MAX_HEADER = 100_000_000  # bytes, as in the safetensors library


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


@dataclass(frozen=True)
class SafetensorsFile:
    """The header of a safetensors file.

    Attributes:
        path: The file.
        entries: Its tensors by name.
    """

    path: Path
    entries: dict[str, TensorEntry]

    def read(self, name: str) -> torch.Tensor:
        """A floating-point tensor of one of `FLOATS`."""
        entry = self.entries[name]
        with self.path.open("rb") as file:
            file.seek(entry.begin)
            content = bytearray(entry.end - entry.begin)
            file.readinto(content)
        return torch.frombuffer(content, dtype=FLOATS[entry.dtype]).reshape(entry.shape)


def read_header(path: Path) -> SafetensorsFile:
    """The tensors of a file, without their bytes.

    Raises:
        ModelError: The file cannot be read, or its header does not fit its size.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(_MAX_HEADER, size - 8):
                raise ModelError(f"{path} is cut off or no safetensors file")
            content = file.read(length)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    header = parse_json(content, f"the header of {path}")
    if not isinstance(header, dict):
        raise ModelError(f"{path} has a header that is no JSON object")
    header.pop(_METADATA, None)
    entries = {name: _entry(path, name, value, 8 + length, size) for name, value in header.items()}
    return SafetensorsFile(path, entries)


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
        good = isinstance(dtype, str) and all(type(n) is int and n >= 0 for n in numbers)
        good = good and begin <= end <= size - start
        if good and dtype in FLOATS:
            good = end - begin == math.prod(shape) * FLOATS[dtype].itemsize
    except (TypeError, ValueError, KeyError):
        good = False
    if not good:
        raise ModelError(
            f"{path}: tensor {name} does not fit the file ({shorten(value)}); fetch the file again"
        )
    return TensorEntry(dtype, tuple(shape), start + begin, start + end)


def write_tensor(path: Path, entry: TensorEntry, tensor: torch.Tensor) -> None:
    """Replace the bytes of one tensor in a file.

    Args:
        path: The file; its header stays as it is.
        entry: Where the tensor is.
        tensor: Of the entry's dtype and shape.

    Raises:
        OSError: The file cannot be written.
    """
    if tensor.shape != entry.shape or tensor.dtype != FLOATS[entry.dtype]:
        raise ValueError(f"{tuple(tensor.shape)} {tensor.dtype} does not take the place of {entry}")
    with path.open("r+b") as file:
        file.seek(entry.begin)
        file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
