"""Where activations go that one process captures, or several of them together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.errors import ProbeError
from truthgate_eval.probing.activations import ActivationWriter
from truthgate_eval.processes import Processes

# Makes a float32 array of a shape, in memory or in a file.
Allocate = Callable[[tuple[int, int, int, int]], NDArray[np.float32]]


def allocate_in_memory(shape: tuple[int, int, int, int]) -> NDArray[np.float32]:
    """A new array."""
    return np.empty(shape, dtype=np.float32)


class SharedCapture:
    """The activations of some sequences, of which this process runs a part.

    The first process has room for all of them, the others for their own.

    Attributes:
        array: float32 [sequences with room, layers, heads, width].
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        own: Sequence[int],
        *,
        allocate: Allocate,
        processes: Processes,
        progress: Callable[[int], object] | None,
    ) -> None:
        """Make room.

        Args:
            shape: [sequences, layers, heads, width] of all sequences.
            own: Numbers of those that this process runs.
            allocate: Makes the room.
            processes: The processes.
            progress: Called with the number of sequences that were added since the last call.
        """
        self._own, self._count, self._processes, self._progress = sorted(own), shape[0], processes, progress
        self._places = None if processes.is_main else {row: place for place, row in enumerate(self._own)}
        self.array = allocate(shape if processes.is_main else (len(self._own), *shape[1:]))
        self._writer = ActivationWriter(self.array)

    @property
    def row_bytes(self) -> int:
        """Bytes of one sequence's activations."""
        return 4 * math.prod(self.array.shape[1:])

    def put(self, rows: Sequence[int], values: NDArray[np.float32]) -> None:
        """Add activations [layers, heads, width], or [rows, layers, heads, width], of these sequences."""
        self.write(rows, values)
        self.advance(len(rows))

    def write(self, rows: Sequence[int], values: NDArray[np.float32]) -> None:
        """As `put`, without telling of progress."""
        self._writer.put(self._places_of(rows), values)

    def advance(self, count: int) -> None:
        """Tell of progress by so many sequences."""
        if self._progress is not None:
            self._progress(count)

    def read(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """A copy of activations that were added, [rows, layers, heads, width]."""
        values = self.array[self._places_of(rows)]
        self._writer.drop()
        return values

    def _places_of(self, rows: Sequence[int]) -> list[int]:
        return list(rows) if self._places is None else [self._places[row] for row in rows]

    def gather(self) -> NDArray[np.float32]:
        """All activations in the first process, this process's own in the others.

        Raises:
            ProbeError: The processes' sequences are not all.
            ProcessError: Another process has failed.
        """
        self._writer.drop()
        found = self._processes.gather_rows(self._own, self.array, self.put)
        if found != list(range(self._count)):
            raise ProbeError(f"the processes have run {len(found)} of {self._count} sequences")
        self._writer.drop()
        return self.array
