"""Rows of Parquet files, a few at a time, within bounds of what a file may unfold to.

Pages are compressed, and equal values are stored once: a file of some kilobytes can hold gigabytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truthgate_eval.errors import DataError, reason_of
from truthgate_eval.files.regular import open_regular

if TYPE_CHECKING:
    import pyarrow

_BATCH_ROWS = 64  # rows of a release hold whole image files
_BATCH_BYTES = 64 << 20
_MAX_FOOTER = 16 << 20
_MAX_LIST = 1_000_000  # items of a list in the footer
# A file may unfold to so many times its own bytes, and any file to `_BATCH_BYTES` and `_FEW_ROWS`.
_MOST_TIMES, _FEW_ROWS = 20, 100_000


def iterate_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file in its order; few are in memory at once.

    Raises:
        DataError: The file is missing, is not Parquet, or unfolds to far more than its size.
    """
    import pyarrow
    import pyarrow.parquet

    if not path.exists():
        raise DataError(f"no file {path}")
    rows = content = 0
    try:
        size = _check_end(path)
        with pyarrow.parquet.ParquetFile(
            path,
            buffer_size=1 << 20,
            pre_buffer=False,
            thrift_string_size_limit=_MAX_FOOTER,
            thrift_container_size_limit=_MAX_LIST,
        ) as file:
            largest = _check_sizes(file.metadata, path, size)
            # No row is larger than its row group.
            batch_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(largest, 1)))
            for batch in file.iter_batches(batch_size=batch_rows):
                rows, content = rows + batch.num_rows, content + batch.nbytes
                if rows > max(_FEW_ROWS, size) or content > max(_BATCH_BYTES, _MOST_TIMES * size):
                    raise _unfolds(path, size)
                yield from batch.to_pylist()
    # Damaged files end in OSError; texts, dates and zones that Python does not have in those after it.
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, LookupError) as error:
        reason = reason_of(error)  # of a zone, the message is its name alone
        raise DataError(f"{path} is not a Parquet file that can be read: {reason}") from error


def _check_end(path: Path) -> int:
    """The size of a file whose last bytes are those of Parquet, with a footer that is not too long."""
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        end = file.read(8)
    if size < 12 or end[4:] != b"PAR1":
        raise DataError(f"{path} is not a Parquet file that can be read: it does not end as one")
    if int.from_bytes(end[:4], "little") > _MAX_FOOTER:
        raise DataError(f"{path} is not a Parquet file that can be read: its footer is too long")
    return size


def _check_sizes(metadata: pyarrow.parquet.FileMetaData, path: Path, size: int) -> int:
    """The uncompressed bytes of the largest row group, if they are what a file of that size may have.

    Columns are not asked: pyarrow 26 ends the process where statistics in the footer are damaged.
    """
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size for group in groups), default=0)
    rows = sum(group.num_rows for group in groups)
    if largest > max(_BATCH_BYTES, _MOST_TIMES * size) or rows > max(_FEW_ROWS, size):
        raise _unfolds(path, size)
    return largest


def _unfolds(path: Path, size: int) -> DataError:
    return DataError(
        f"{path} is refused: it has {size:,} bytes, and unfolds to more than {_MOST_TIMES} times as much"
    )
