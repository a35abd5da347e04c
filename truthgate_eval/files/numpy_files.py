"""`.npy` and `.npz` files of plain arrays, read without pickle and without trusting their headers.

numpy's own reader allocates what a header says, and decompresses as much as an archive holds: a file of one
megabyte can take gigabytes. Here sizes are bounded before anything is allocated.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.errors import DataError, first_line, shorten
from truthgate_eval.files.regular import open_regular, unreadable

# Bytes of all arrays that are read out of one file, as they are and as float32. The largest models have 126
# layers of 128 heads of 128 features: a probe's weights for all of them are 8 million bytes.
MAX_ARRAY_BYTES = 64 << 20
_MAX_MEMBERS, _MAX_DIRECTORY = 256, 1 << 20
_MAX_HEADER, _MAX_DIMENSIONS = 10_000, 8
_MAGIC = b"\x93NUMPY"
# One entry of an array's header, which is a dict in Python's syntax.
_ENTRY = re.compile(
    r"""\s*(["'])(?P<name>descr|fortran_order|shape)\1\s*:\s*"""
    r"""(?P<value>'[^'"\\]*'|"[^'"\\]*"|True|False|\([0-9,\s]*\))\s*(?:,|$)"""
)
_DTYPE = re.compile(r"[<>=|]?(?:[fiu][248]|[iu]1|b1|U[1-9][0-9]{0,7})")
_END_OF_ARCHIVE, _LOCATOR_64 = b"PK\x05\x06", b"PK\x06\x07"
# What zipfile and its decompressors raise for archives that are damaged.
_BROKEN_ARCHIVE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError,
    OSError, OverflowError, IndexError,
)  # fmt: skip


def read_npy(path: Path) -> NDArray[np.generic]:
    """The array of a `.npy` file.

    Raises:
        DataError: The file is damaged or too large, or holds anything else than numbers or text.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            return _read_array(file, size, str(path), MAX_ARRAY_BYTES)
        except OSError as error:
            raise unreadable(path, error) from error


def read_npz(
    path: Path, is_wanted: Callable[[str], bool]
) -> tuple[dict[str, NDArray[np.generic]], list[str]]:
    """Arrays of a `.npz` file by their names, and the names of all arrays that it has.

    Args:
        path: The file.
        is_wanted: Whether to read the array of a name; the others' contents are not looked at.

    Raises:
        DataError: The file is damaged or too large, a name is there twice or is that of a file elsewhere, or
            an array holds anything else than numbers or text.
    """
    arrays: dict[str, NDArray[np.generic]] = {}
    left = MAX_ARRAY_BYTES
    with open_regular(path) as file:
        try:
            _check_end(file, path)
            with zipfile.ZipFile(file) as archive:
                members = _members(archive, path)
                for name, member in members.items():
                    if not is_wanted(name):
                        continue
                    with archive.open(member) as content:
                        array = _read_array(content, member.file_size, f"{name[:200]}.npy in {path}", left)
                        content.read(1)  # at its end, zipfile compares the checksum
                    arrays[name] = array
                    left -= max(array.nbytes, 4 * array.size)
        except _BROKEN_ARCHIVE as error:
            raise DataError(f"{path} is damaged or no .npz file: {first_line(error)}") from error
    return arrays, list(members)


def _check_end(file: io.BufferedIOBase, path: Path) -> None:
    """Check the archive's last record, before zipfile makes an object of every member that it lists."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 42))
    end = file.read().rjust(42, b"\0")
    if end[20:24] != _END_OF_ARCHIVE or end[:4] == _LOCATOR_64:
        raise DataError(f"{path} is cut off or no .npz file")
    count, directory = struct.unpack("<HI", end[30:36])
    if count > _MAX_MEMBERS:
        raise _too_many(path, count)
    if directory > _MAX_DIRECTORY:
        raise DataError(f"{path} has a directory of {directory:,} bytes, expected {_MAX_DIRECTORY:,} at most")


def _too_many(path: Path, count: int) -> DataError:
    return DataError(f"{path} lists {count} arrays: no score artifact has more than {_MAX_MEMBERS}")


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The archive's members by the names of their arrays."""
    members = archive.infolist()
    if len(members) > _MAX_MEMBERS:
        raise _too_many(path, len(members))
    for member in members:
        name = member.filename
        if not name.endswith(".npy") or "/" in name or "\\" in name or ".." in name or not name.isprintable():
            raise DataError(f"{path} holds {shorten(name)}, expected arrays only, without folders")
        if member.flag_bits & 1:
            raise DataError(f"{path} is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{path} is compressed by a method that no .npz file has")
    name, times = Counter(member.filename for member in members).most_common(1)[0] if members else ("", 1)
    if times > 1:
        raise DataError(f"{path} holds {shorten(name)} {times} times")
    return {member.filename.removesuffix(".npy"): member for member in members}


def _read_array(file: IO[bytes], size: int, where: str, most: int) -> NDArray[np.generic]:
    """An array in numpy's format, which must fill all of `size` bytes.

    Args:
        file: At the array's beginning.
        size: Bytes of the array and its header, as the file system or the archive says.
        where: The file, for messages.
        most: Bytes that the array may have, as it is and as float32.
    """
    magic = file.read(8)
    lengths = {1: ("<H", 2), 2: ("<I", 4), 3: ("<I", 4)}
    if len(magic) < 8 or magic[:6] != _MAGIC or magic[6] not in lengths:
        raise DataError(f"{where} is not an array in numpy's format")
    form, width = lengths[magic[6]]
    found = file.read(width)
    length = struct.unpack(form, found)[0] if len(found) == width else _MAX_HEADER + 1
    if length > _MAX_HEADER:
        raise DataError(f"{where} is cut off, or has a header of more than {_MAX_HEADER:,} bytes")
    dtype, shape, is_fortran = _parse_header(file.read(length), where)
    count = math.prod(shape)
    # numpy multiplies the other numbers of a shape that has a 0.
    if math.prod(max(1, number) for number in shape) * max(dtype.itemsize, 4) > most:
        raise DataError(
            f"{where} has shape {shorten(shape)}, which is too large: all arrays of a file may have "
            f"{MAX_ARRAY_BYTES:,} bytes"
        )
    wanted = count * dtype.itemsize
    if size != 8 + width + length + wanted:
        raise DataError(f"{where} has {size:,} bytes, which do not fit its shape {shorten(shape)}")
    content = bytearray(file.read(wanted))
    if len(content) != wanted:
        raise DataError(f"{where} is cut off")
    if not count:
        return np.zeros(shape, dtype)
    return np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")


def _parse_header(header: bytes, where: str) -> tuple[np.dtype[np.generic], tuple[int, ...], bool]:
    """(dtype, shape, whether in Fortran's order) out of `{'descr': '<f4', 'fortran_order': False, ...}`.

    numpy evaluates a header as Python. What an array of numbers may have there is matched instead.
    """
    text = header.decode("latin-1").strip()
    fields: dict[str, str] = {}
    inside, position = text[1:-1], 0
    while inside[position:].strip() and (match := _ENTRY.match(inside, position)):
        fields[match["name"]] = match["value"]
        position = match.end()
    good = text[:1] == "{" and text[-1:] == "}" and not inside[position:].strip()
    descr, shape = fields.get("descr", "")[1:-1], fields.get("shape", "")[1:-1]
    numbers = [number.strip() for number in shape.split(",")]
    numbers = numbers[:-1] if numbers[-1] == "" else numbers
    good = good and len(fields) == 3 and fields["shape"].startswith("(")
    good = good and all(re.fullmatch("[0-9]{1,18}", number) for number in numbers)
    good = good and fields["fortran_order"] in ("True", "False") and len(numbers) <= _MAX_DIMENSIONS
    if not good or not _DTYPE.fullmatch(descr):
        shown = shorten(text)
        raise DataError(f"{where} has the header {shown}, expected that of an array of numbers")
    return np.dtype(descr), tuple(map(int, numbers)), fields["fortran_order"] == "True"
