"""Storage of activations: in memory, or in a memory-mapped file.

All activations of 10,000 sequences of a 7B model are 5.2 GB. The file stores them layer by layer, so that
fitting reads one layer after the other. Pages that were written or read are dropped from this process's
memory at once. They stay in the system's page cache as long as no other program needs the memory.
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
import torch
from numpy.typing import NDArray
from torch import Tensor

from truthgate_eval.errors import ProbeError
from truthgate_eval.memory import free_memory
from truthgate_eval.probing.config import check_memory

Features = NDArray[Any] | Tensor

_GIB = 2**30
# Share of the free memory that activations may take: probes and the model's batches need some, too.
_MEMORY_SHARE = 0.5
# Mapped bytes that may be in memory before their pages are dropped, and bytes of a layer read at once.
_MAX_RESIDENT, _STRIP = 8 * 2**20, 12 * 2**20


def allocate_activations(
    shape: tuple[int, int, int, int], *, memory: float | None = None, folder: Path | None = None
) -> NDArray[np.float32]:
    """A float32 array [n, layers, heads, width] to capture into, in a file if it is large.

    The file has no name. It disappears with the array, however the program ends.

    Args:
        shape: The array's.
        memory: GiB above which activations go to a file; half of the free memory by default, which the
            processes that a launcher has started on this machine share.
        folder: Folder of the file; the system's folder for temporary files by default.

    Raises:
        ProbeError: The limit is not a number of GiB, or the folder has too little free space.
    """
    check_memory(memory)
    size = int(np.prod(shape, dtype=np.int64)) * 4
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes that share this machine's memory
    limit = _MEMORY_SHARE * free_memory() / here if memory is None else memory * _GIB
    if size <= limit or size == 0:
        return np.empty(shape, dtype=np.float32)
    n, layers, heads, width = shape
    scratch = Path(tempfile.gettempdir() if folder is None else folder)
    if shutil.disk_usage(scratch).free < size:
        raise ProbeError(
            f"{size / _GIB:.1f} GiB of activations fit neither in memory (limit {limit / _GIB:.1f} GiB) "
            f"nor in {scratch}: probe fewer documents, raise --memory, or write the output to a larger disk"
        )
    with tempfile.TemporaryFile(dir=scratch) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error now, not a crash later
        mapped = np.memmap(file, dtype=np.float32, mode="w+", shape=(layers, n, heads, width))
    return mapped.transpose(1, 0, 2, 3)


def drop_pages(x: Features) -> None:
    """Drop a mapped array's pages from this process's memory. Their content stays in the file."""
    # A private mapping (mode c) would lose what was written to it.
    if not isinstance(x, np.memmap) or x.mode == "c" or not hasattr(mmap, "MADV_DONTNEED"):
        return
    base: Any = x
    while not isinstance(base, mmap.mmap):
        base = base.base
    base.madvise(mmap.MADV_DONTNEED)


class ActivationWriter:
    """Writes activations into an array, and drops the pages that were written of a mapped one."""

    def __init__(self, array: NDArray[np.float32]) -> None:
        self.array, self._resident = array, 0

    def put(self, rows: Sequence[int], values: NDArray[np.float32]) -> None:
        """Write `values` [layers, heads, width], or [rows, layers, heads, width], to these sequences."""
        self.array[rows] = values
        self._resident += len(rows) * self.array[0].nbytes
        if self._resident >= _MAX_RESIDENT:
            self.drop()

    def drop(self) -> None:
        """Drop the pages that were written since the last time."""
        drop_pages(self.array)
        self._resident = 0


def row_chunks(x: Features, layers: slice, heads: slice) -> Iterator[tuple[slice, Tensor]]:
    """(rows, float32 [rows, layers, heads, width]) of an array [n, layers, heads, width], in order."""
    shape = x.shape[1:] if isinstance(x, np.memmap) else x[:, layers, heads].shape[1:]
    # Of a mapped array, the rows of whole layers are read into memory, whichever heads are needed.
    row_bytes = 4 * shape[-1] * shape[-2] * len(range(*layers.indices(x.shape[1])))
    rows = max(1, _MAX_RESIDENT // row_bytes)
    for start in range(0, len(x), rows):
        some = slice(start, start + rows)
        chunk = x[some, layers, heads]
        yield some, chunk.float() if isinstance(chunk, Tensor) else torch.from_numpy(_float32(chunk))
        drop_pages(x)


def _float32(chunk: NDArray[Any]) -> NDArray[np.float32]:
    return np.array(chunk, dtype=np.float32)


def head_blocks(x: Features, device: torch.device, block_bytes: int) -> Iterator[tuple[int, Tensor]]:
    """(number of the first head, contiguous float32 [heads, n, width]) of consecutive heads, in order.

    A block has whole layers, or heads of one layer. Of a mapped array, one strip at a time is in memory.

    Args:
        x: The activations, [n, layers, heads, width].
        device: Where the blocks go.
        block_bytes: The size of a block's features in float64.
    """
    n, layers, heads, width = x.shape
    size = max(1, block_bytes // (8 * n * width))
    step = max(1, size // heads)  # layers
    strip_heads = heads if size >= heads else size * max(1, _STRIP // (4 * n * width * size))
    for layer in range(0, layers, step):
        for first in range(0, heads, strip_heads):
            strip = _strip(
                x, slice(layer, min(layer + step, layers)), slice(first, min(first + strip_heads, heads))
            )
            for start in range(0, len(strip), size):
                yield layer * heads + first + start, strip[start : start + size].to(device)


def _strip(x: Features, layers: slice, heads: slice) -> Tensor:
    """Contiguous float32 [heads of all these layers, n, width]."""
    if isinstance(x, Tensor):
        chosen = x[:, layers, heads].float()
        return chosen.reshape(len(x), -1, x.shape[-1]).transpose(0, 1).contiguous()
    count = (layers.stop - layers.start) * (heads.stop - heads.start)
    strip = torch.empty(count, len(x), x.shape[-1])
    for rows, chunk in row_chunks(x, layers, heads):
        strip[:, rows] = chunk.flatten(1, 2).transpose(0, 1)
    return strip
