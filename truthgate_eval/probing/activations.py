"""Room for activations: in memory, or in a file that is mapped into it.

All activations of 10,000 sequences of a 7B model are 5.2 GB. A file holds them layer by layer, so that
fitting reads one layer after the other; what has been written or read is dropped from this process's
memory at once, and stays in the system's cache of files for as long as nothing else needs the room.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from truthgate_eval.errors import ProbeError

Features = NDArray[Any] | Tensor

_GIB = 2**30
# Of the free memory, what activations may fill: probes and the model's batches need some, too.
_SHARE = 0.5
# Mapped bytes that may stand in memory before they are dropped; and what is read of a layer at once.
_HELD, _STRIP = 8 * 2**20, 12 * 2**20


def free_memory() -> int:
    """Bytes that this process may still take, by the machine and by its control group."""
    free = psutil.virtual_memory().available
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdigit():
        free = min(free, int(most) - int(used.read_text()))
    return max(free, 0)


def allocate_activations(
    shape: tuple[int, int, int, int], *, memory: float | None = None, folder: Path | None = None
) -> NDArray[np.float32]:
    """A float32 array [n, layers, heads, width] to capture into; in a file if it is large.

    The file has no name and goes with the array, however the program ends.

    Args:
        shape: The array's.
        memory: GiB above which activations go to a file; half of the free memory by default.
        folder: Where the file lies; the system's folder for temporary files by default.

    Raises:
        ProbeError: The limit is not a number of GiB, or the folder has no room.
    """
    if memory is not None and not memory >= 0:
        raise ProbeError(f"memory={memory}: expected a number of GiB, 0 or more")
    size = int(np.prod(shape, dtype=np.int64)) * 4
    limit = _SHARE * free_memory() if memory is None else memory * _GIB
    if size <= limit or size == 0:
        return np.empty(shape, dtype=np.float32)
    n, layers, heads, width = shape
    place = Path(tempfile.gettempdir() if folder is None else folder)
    if shutil.disk_usage(place).free < size:
        raise ProbeError(
            f"{size / _GIB:.1f} GiB of activations fit neither in memory (limit {limit / _GIB:.1f} GiB) "
            f"nor in {place}: probe fewer documents, raise --memory, or write the output to a larger disk"
        )
    with tempfile.TemporaryFile(dir=place) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error now, not a crash later
        mapped = np.memmap(file, dtype=np.float32, mode="w+", shape=(layers, n, heads, width))
    return mapped.transpose(1, 0, 2, 3)


def drop_pages(x: Features) -> None:
    """Take a mapped array's pages out of this process's memory; their content stays in the file."""
    # A private map (mode c) would lose what was written to it.
    if not isinstance(x, np.memmap) or x.mode == "c" or not hasattr(mmap, "MADV_DONTNEED"):
        return
    base: Any = x
    while not isinstance(base, mmap.mmap):
        base = base.base
    base.madvise(mmap.MADV_DONTNEED)


class ActivationWriter:
    """Puts activations into their places, and drops what was written of a mapped array."""

    def __init__(self, array: NDArray[np.float32]) -> None:
        self.array, self.held = array, 0

    def put(self, rows: Sequence[int], values: NDArray[np.float32]) -> None:
        """Write `values` [layers, heads, width], or one such for each row, to sequences `rows`."""
        self.array[rows] = values
        self.held += len(rows) * self.array[0].nbytes
        if self.held >= _HELD:
            self.drop()

    def drop(self) -> None:
        """Drop what is left."""
        drop_pages(self.array)
        self.held = 0


def row_chunks(x: Features, layers: slice, heads: slice) -> Iterator[tuple[slice, Tensor]]:
    """(rows, float32 [rows, layers, heads, width]) of an array [n, layers, heads, width], in order."""
    wide = x.shape[1:] if isinstance(x, np.memmap) else x[:, layers, heads].shape[1:]
    # Of a mapped array whole layers' rows come into memory, whichever heads are read.
    each = 4 * wide[-1] * wide[-2] * len(range(*layers.indices(x.shape[1])))
    rows = max(1, _HELD // each)
    for start in range(0, len(x), rows):
        chosen = slice(start, start + rows)
        part = x[chosen, layers, heads]
        yield chosen, part.float() if isinstance(part, Tensor) else torch.from_numpy(_float32(part))
        drop_pages(x)


def _float32(part: NDArray[Any]) -> NDArray[np.float32]:
    return np.array(part, dtype=np.float32)


def head_blocks(x: Features, device: torch.device, block_bytes: int) -> Iterator[tuple[int, Tensor]]:
    """(first head, contiguous float32 [heads, n, width]) of heads side by side, in order.

    Blocks are of whole layers, or within one. Of a mapped array one strip at a time is in memory.

    Args:
        x: The activations, [n, layers, heads, width].
        device: Where the blocks go.
        block_bytes: The size of a block's features in float64.
    """
    n, layers, heads, width = x.shape
    size = max(1, block_bytes // (8 * n * width))
    step = max(1, size // heads)  # layers
    wide = heads if size >= heads else size * max(1, _STRIP // (4 * n * width * size))
    for layer in range(0, layers, step):
        for first in range(0, heads, wide):
            strip = _strip(x, slice(layer, min(layer + step, layers)), slice(first, min(first + wide, heads)))
            for start in range(0, len(strip), size):
                yield layer * heads + first + start, strip[start : start + size].to(device)


def _strip(x: Features, layers: slice, heads: slice) -> Tensor:
    """Contiguous float32 [heads of all these layers, n, width]."""
    if isinstance(x, Tensor):
        part = x[:, layers, heads].float()
        return part.reshape(len(x), -1, x.shape[-1]).transpose(0, 1).contiguous()
    count = (layers.stop - layers.start) * (heads.stop - heads.start)
    strip = torch.empty(count, len(x), x.shape[-1])
    for rows, part in row_chunks(x, layers, heads):
        strip[:, rows] = part.flatten(1, 2).transpose(0, 1)
    return strip
