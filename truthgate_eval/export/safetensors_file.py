"""Single tensors of a safetensors file, read and replaced in place; the rest of the file is not touched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from truthgate_eval.errors import DataError, ModelError
from truthgate_eval.files.safetensors_header import TensorEntry, read_safetensors_header

# The floating-point types in which a gate can be multiplied; quantized checkpoints have others.
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


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
        return SafetensorsFile(path, read_safetensors_header(path)[0])
    except DataError as error:
        raise ModelError(str(error)) from error


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
