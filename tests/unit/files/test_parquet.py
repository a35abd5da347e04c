"""Parquet files that unfold to far more than their size, and those that do not."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
from helpers.bounds import check_refused

from truthgate_eval.files.parquet import iterate_rows


def test_a_parquet_file_that_unfolds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"a": [bytes(100 << 20)]}), path, compression="zstd")
    assert path.stat().st_size < 1e6
    check_refused(lambda: list(iterate_rows(path)), "unfolds to more than 20 times as much")
    many = pyarrow.table({"a": pyarrow.nulls(2_000_000, pyarrow.int8())})
    pyarrow.parquet.write_table(many, path, compression="zstd")
    check_refused(lambda: list(iterate_rows(path)), "unfolds to more than 20 times as much")


def test_equal_values_of_a_parquet_file_are_not_multiplied_without_end(tmp_path: Path) -> None:
    """A value of 4 MB is stored once for 1,000 rows."""
    path = tmp_path / "a.parquet"
    values = pyarrow.array(["x" * (4 << 20)]).dictionary_encode()
    repeated = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 1000, pyarrow.int8()), values.dictionary
    )
    pyarrow.parquet.write_table(pyarrow.table({"a": repeated}), path)
    check_refused(lambda: sum(1 for _ in iterate_rows(path)), "unfolds to more than 20 times as much")


def test_rows_of_images_are_read(tmp_path: Path) -> None:
    """A release has hundreds of megabytes of images in one row group, which do not compress."""
    path = tmp_path / "a.parquet"
    rows = [{"n": n, "image": {"bytes": os.urandom(1 << 20)}} for n in range(80)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert [row["n"] for row in iterate_rows(path)] == list(range(80))
