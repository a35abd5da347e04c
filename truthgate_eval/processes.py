"""Several processes that do one command's work together, as `accelerate launch` and torchrun start them.

Each runs its share of the sequences. The first one, rank 0, gathers what they found, writes and prints.
Before processes exchange anything they tell each other of errors, so that an error of one ends all of them,
with one line. Plain values travel over a group of their own on the CPU (gloo), whatever the model runs on.
"""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.errors import ProcessError, TruthGateError

T = TypeVar("T")
P = ParamSpec("P")

# Processes wait for the first one while it fits probes, which may take hours.
_TIMEOUT = timedelta(weeks=52)
_CHUNK_BYTES = 64 * 2**20  # of rows on their way to the first process


@dataclass(frozen=True)
class Processes:
    """The processes of one command, as one of them sees them.

    Methods other than the properties and `block` are collective: all processes must call them, in the same
    order.

    Attributes:
        rank: This one's number; 0 is the one that writes and prints.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that gathers, writes and prints."""
        return self.rank == 0

    def block(self, weights: Sequence[float]) -> list[int]:
        """Indices of this process's share of some items: consecutive ones, of about equal weight in all.

        Args:
            weights: What each item costs; the same in all processes.

        Example:
            >>> [Processes(rank, 2).block([3, 1, 1, 1]) for rank in (0, 1)]
            [[0], [1, 2, 3]]
        """
        costs = np.asarray(weights, dtype=np.float64)
        middles = np.cumsum(costs) - costs / 2
        owners = np.floor(middles / max(float(costs.sum()), 1e-300) * self.count)
        return np.flatnonzero(np.minimum(owners, self.count - 1) == self.rank).tolist()

    def exchange(self, value: T) -> list[T]:
        """The value of every process, by rank.

        Args:
            value: This process's; it is pickled.

        Raises:
            ProcessError: Another process has failed, see `together`.
        """
        return [value] if self.count == 1 else self._exchange(value, None)

    def on_main(self, work: Callable[[], T]) -> T:
        """What the first process computes, in all of them.

        Args:
            work: Called in the first process only.

        Raises:
            ProcessError: Another process has failed, see `together`.
        """
        return self.from_main(work() if self.is_main else None)

    def from_main(self, value: T | None) -> T:
        """The first process's value, in all of them.

        Args:
            value: In the first process, what all get.

        Raises:
            ProcessError: Another process has failed, see `together`.
        """
        found: Any = self.exchange(value)[0]
        return found

    def gather_rows(
        self, rows: Sequence[int], values: NDArray[np.float32], put: Callable[[list[int], NDArray[Any]], Any]
    ) -> list[int]:
        """Hand the rows of all other processes to the first one.

        Args:
            rows: Numbers of this process's rows.
            values: The rows, float32 [rows, ...]. The first process's own are not read.
            put: Called in the first process with numbers of rows and their values.

        Returns:
            The numbers of all rows, in ascending order.

        Raises:
            ProcessError: Another process has failed, or two have the same row.
        """
        rows_of = self.exchange(list(rows))
        found = sorted(row for own in rows_of for row in own)
        if len(set(found)) != len(found):
            raise ProcessError("the processes have shared the work differently: do they see the same data?")
        if self.count > 1:
            step = max(1, _CHUNK_BYTES // max(1, 4 * int(np.prod(values.shape[1:], dtype=np.int64))))
            self._send_rows(rows_of, values, put, step)
        return found

    @contextmanager
    def together(self) -> Iterator[None]:
        """In this block, an error of ours in one process ends all of them with the same message.

        A process that has no error gets one at its next exchange, at the latest at the end of the block. An
        error that is not ours ends its own process, and the launcher then ends the others.

        Raises:
            ProcessError: Another process has failed.
        """
        try:
            yield
            self.exchange(None)
        except ProcessError:
            raise
        except TruthGateError as error:
            if self.count == 1:
                raise
            self._exchange(None, str(error))
            raise AssertionError("an error was shared, and none came back") from error

    def _exchange(self, value: T, error: str | None) -> list[T]:
        import torch.distributed

        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, (value, error), group=_group())
        errors = [text for _, text in found if text is not None]
        if errors:
            raise ProcessError(errors[0])
        return [own for own, _ in found]

    def _send_rows(
        self,
        rows_of: Sequence[Sequence[int]],
        values: NDArray[np.float32],
        put: Callable[[list[int], NDArray[Any]], Any],
        step: int,
    ) -> None:
        import torch
        import torch.distributed

        if not self.is_main:
            for start in range(0, len(values), step):
                chunk = torch.from_numpy(np.array(values[start : start + step], dtype=np.float32, order="C"))
                torch.distributed.send(chunk, dst=0, group=_group())
            return
        for rank, rows in enumerate(rows_of[1:], 1):
            for start in range(0, len(rows), step):
                chosen = list(rows[start : start + step])
                received = torch.empty((len(chosen), *values.shape[1:]))
                torch.distributed.recv(received, src=rank, group=_group())
                put(chosen, received.numpy())


ONE_PROCESS = Processes()


def launched() -> Processes:
    """The processes that `accelerate launch` or torchrun has started, without a connection between them."""
    # Some clusters set WORLD_SIZE for the launcher itself; only the launcher sets LOCAL_RANK.
    if "LOCAL_RANK" not in os.environ:
        return ONE_PROCESS
    count = int(os.environ.get("WORLD_SIZE", 1))
    return Processes(int(os.environ.get("RANK", 0)), count) if count > 1 else ONE_PROCESS


def join() -> Processes:
    """Connect the processes that were launched; without several, this one alone.

    Each process has a device of its own afterwards, which is torch's current one, and accelerate counts them.
    """
    if launched().count == 1:
        return ONE_PROCESS
    import torch.distributed
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    if not torch.distributed.is_initialized():
        # Without being told, accelerate counts processes on a machine without accelerators as one.
        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
        PartialState(cpu=cpu, timeout=_TIMEOUT)
    _group()
    return Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())


def check_one_process(what: str) -> None:
    """Refuse to run in several processes.

    Args:
        what: The command, for the message.

    Raises:
        ProcessError: Several were launched. All of them raise it.
    """
    if launched().count > 1:
        raise ProcessError(f"{what} runs in one process: start it without accelerate launch or torchrun")


def in_all_processes(command: Callable[P, None]) -> Callable[P, None]:
    """A command that the launched processes run together (`Processes.together`)."""

    @functools.wraps(command)
    def run(*args: P.args, **options: P.kwargs) -> None:
        with join().together():
            command(*args, **options)

    return run


@functools.cache
def _group() -> Any:
    """The processes' group on the CPU: the model's own may be one of GPUs, and give up waiting."""
    import torch.distributed

    # Without it, threads of gloo drop Python's objects while Python ends, which now and then aborts it.
    atexit.register(_close_connections)
    return torch.distributed.new_group(backend="gloo", timeout=_TIMEOUT)


def _close_connections() -> None:
    """Close those of gloo. NCCL's are left: closing them waits for processes that may have failed."""
    import torch.distributed

    if torch.distributed.is_initialized():
        has_nccl = "nccl" in str(torch.distributed.get_backend_config())
        torch.distributed.destroy_process_group(_group() if has_nccl else None)
    # A group's threads end with the last reference to it.
    _group.cache_clear()
