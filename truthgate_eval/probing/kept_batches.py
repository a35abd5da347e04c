"""Batches of a capture whose activations are kept in shards on disk: found, and added while it runs.

A shard holds consecutive batches: one line of JSON, float32 rows, and the SHA-256 of the capture's key, the
shard's name, the line and the rows. It gets its name when it is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.errors import DataError, ModelError, TruthGateError, first_line
from truthgate_eval.files import atomic_file, open_regular, parse_json
from truthgate_eval.probing.capture_store import CaptureStore
from truthgate_eval.probing.shared_capture import SharedCapture
from truthgate_eval.processes import ONE_PROCESS, Processes

log = logging.getLogger(__name__)

# Finished batches are written after this many seconds, and later where writing would take a larger share.
_SECONDS, _SHARE = 30.0, 0.02
_CHUNK_BYTES = 8 * 2**20  # rows that are in memory at once
_MAX_HEADER_BYTES = 32 * 2**20
_SHARD = re.compile(r"(\d{8})-(\d{8})\.shard")


class KeptBatch(NamedTuple):
    """What a shard says of a batch.

    Attributes:
        limit: The largest batch, in tokens or sequences, that memory held when this one had run.
        content: Digest of its images; empty for texts, which the key has.
    """

    limit: int
    content: str


class KeptBatches:
    """The batches of one capture that are on disk, found when the capture begins and added while it runs.

    Without a store nothing is found and nothing is kept. Where shards cannot be written, the capture goes on
    without them, after a warning.
    """

    def __init__(
        self,
        store: CaptureStore | None,
        found: SharedCapture,
        batches: Sequence[Sequence[int]],
        settings: Callable[[], Mapping[str, Any]],
        processes: Processes = ONE_PROCESS,
    ) -> None:
        """Read what an interrupted run has left.

        Args:
            store: Where to look and to write.
            found: Where activations go.
            batches: Numbers of the sequences of each batch that this process runs.
            settings: What decides the activations besides the model, JSON-serializable.
            processes: The processes that share the capture.
        """
        self._store, self._found, self._batches, self._settings = store, found, batches, settings
        self._part = f"{processes.rank}-of-{processes.count}"
        self._key = ""
        self._kept: dict[int, KeptBatch] = {}
        self._pending: dict[int, KeptBatch] = {}
        self._wait, self._last_write = _SECONDS, time.monotonic()
        if store is not None and store.folder.is_dir():
            self._read_shards()

    @property
    def is_on(self) -> bool:
        """Whether batches are kept."""
        return self._store is not None

    def take(self, number: int, content: Callable[[], str] = str) -> int | None:
        """The limit of a batch whose activations were found; None where it must run.

        Args:
            number: Of the batch.
            content: Digest of its images as they are now.
        """
        kept = self._kept.get(number)
        if kept is None:
            return None
        if kept.content != content():
            log.warning("images have changed since the interrupted run: their sequences are run again")
            return None
        self._found.advance(len(self._batches[number]))
        return kept.limit

    def add(self, number: int, limit: int, content: str = "") -> None:
        """Keep a batch whose activations have been put; written now, or together with later ones.

        Args:
            number: Of the batch.
            limit: See `KeptBatch`.
            content: See `KeptBatch`.
        """
        if self._store is not None:
            self._pending[number] = KeptBatch(limit, content)
            if time.monotonic() - self._last_write >= self._wait:
                self._write()

    def finish(self) -> None:
        """Write the last batches, unless the whole capture was quick."""
        if self._pending and (self._key or time.monotonic() - self._last_write >= self._wait):
            self._write()

    def _folder(self) -> Path:
        """The folder of this process's shards.

        Raises:
            ModelError: The model has no digest.
        """
        assert self._store is not None
        self._key = self._key or self._store.key(self._settings())
        return self._store.use(self._key) / self._part

    def _stop(self, reason: str) -> None:
        log.warning("an interruption from here on loses what is not on disk yet: %s", reason)
        self._store = None
        self._pending.clear()

    def _read_shards(self) -> None:
        assert self._store is not None
        try:
            folder = self._folder()
        except ModelError as error:
            self._stop(_why_no_digest(error))
            return
        for path in sorted(folder.glob("*.shard")):
            try:
                self._kept.update(self._read_shard(path))
            except (OSError, TruthGateError) as error:
                log.warning("%s: its sequences are run again", first_line(error))
                with contextlib.suppress(OSError):
                    path.unlink()
        total = sum(map(len, self._batches))
        count = sum(len(self._batches[number]) for number in self._kept)
        if count:
            log.warning("%s: %d of %d sequences have run already", self._store.folder, count, total)
        else:  # else the others may be those of this command's controls
            self._store.warn_of_others()

    def _read_shard(self, path: Path) -> dict[int, KeptBatch]:
        """Put a shard's activations, which count once the shard has proved to be whole.

        Raises:
            DataError: The shard is damaged or of another capture.
        """
        name = _SHARD.fullmatch(path.name)
        numbers = range(int(name[1]), int(name[2])) if name else range(0)
        if not numbers or numbers.stop > len(self._batches):
            raise DataError(f"{path} is no shard of this capture")
        for number in numbers:  # what another shard has of them is overwritten
            self._kept.pop(number, None)
        with open_regular(path) as file:
            header = file.readline(_MAX_HEADER_BYTES)
            digest = self._digest(path)
            digest.update(header)
            for rows in self._chunks(numbers):
                content = file.read(len(rows) * self._found.row_bytes)
                if len(content) != len(rows) * self._found.row_bytes:
                    raise DataError(f"{path} is cut off")
                digest.update(content)
                values = np.frombuffer(content, dtype="<f4").reshape(len(rows), *self._found.array.shape[1:])
                self._found.write(rows, values)
            if file.read(digest.digest_size + 1) != digest.digest():
                raise DataError(f"{path} is damaged")
        try:
            kept = [KeptBatch(int(limit), str(content)) for limit, content in parse_json(header, str(path))]
            return dict(zip(numbers, kept, strict=True))
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{path} is damaged") from error

    def _write(self) -> None:
        """Write the pending batches, one shard for each run of consecutive numbers."""
        start = time.monotonic()
        try:
            folder = self._folder()
            start = time.monotonic()  # without the digest of the model, which is made once
            for numbers in _runs(sorted(self._pending)):
                self._check_space(folder, numbers)
                self._write_shard(folder / f"{numbers.start:08d}-{numbers.stop:08d}.shard", numbers)
        except ModelError as error:
            self._stop(_why_no_digest(error))
        except (OSError, TruthGateError) as error:
            self._stop(first_line(error))
        self._pending.clear()
        self._last_write = time.monotonic()
        self._wait = max(_SECONDS, (self._last_write - start) / _SHARE)

    def _check_space(self, folder: Path, numbers: range) -> None:
        """Leave room for what the run itself may write: the next capture's activations, and the artifact.

        Raises:
            DataError: There is too little.
        """
        folder.mkdir(parents=True, exist_ok=True)
        size = sum(len(self._batches[number]) for number in numbers) * self._found.row_bytes
        if shutil.disk_usage(folder).free < size + self._found.array.nbytes:
            raise DataError(f"too little space is left in {folder}")

    def _write_shard(self, path: Path, numbers: range) -> None:
        header = json.dumps([self._pending[number] for number in numbers]).encode() + b"\n"
        digest = self._digest(path)

        def write(file: IO[bytes], content: bytes | memoryview) -> None:
            digest.update(content)
            file.write(content)

        with atomic_file(path) as file:
            write(file, header)
            for rows in self._chunks(numbers):
                write(file, _little_endian(self._found.read(rows)))
            file.write(digest.digest())

    def _digest(self, path: Path) -> hashlib._Hash:
        return hashlib.sha256(f"{self._key} {path.name} ".encode())

    def _chunks(self, numbers: range) -> Iterator[list[int]]:
        """The sequences of some batches, in parts that may be in memory."""
        rows = [row for number in numbers for row in self._batches[number]]
        step = max(1, _CHUNK_BYTES // self._found.row_bytes)
        return (rows[start : start + step] for start in range(0, len(rows), step))


def _little_endian(values: NDArray[np.float32]) -> memoryview:
    return np.ascontiguousarray(values, dtype="<f4").reshape(-1).view(np.uint8).data


def _why_no_digest(error: ModelError) -> str:
    return f"models are told apart by their weights and tokenizers ({first_line(error.__cause__ or error)})"


def _runs(numbers: Sequence[int]) -> Iterator[range]:
    """Ascending numbers as ranges of consecutive ones.

    Example:
        >>> list(_runs([2, 3, 4, 7]))
        [range(2, 5), range(7, 8)]
    """
    start = 0
    for stop in range(1, len(numbers) + 1):
        if stop == len(numbers) or numbers[stop] != numbers[stop - 1] + 1:
            yield range(numbers[start], numbers[stop - 1] + 1)
            start = stop
