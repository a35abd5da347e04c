"""Prepared data sets: written as a whole, and found by name."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pytest

from truthgate_eval.data.store import PROVENANCE_FILE, prepared_file, read_rows, write_dataset
from truthgate_eval.errors import DataError


def test_a_failed_preparation_leaves_the_older_data_set_unchanged(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", {"a": [{"x": 1}]}, source={})
    with pytest.raises(pyarrow.ArrowException):
        write_dataset(tmp_path / "set", {"a": [{"x": 2}], "b": [{"x": 1}, {"x": "one"}]}, source={})
    assert read_rows(tmp_path / "set" / "a.parquet") == [{"x": 1}]
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["a.parquet", PROVENANCE_FILE]


def test_the_error_for_a_missing_data_set_has_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pope/coco_random is not prepared.*truthgate data pope"):
        prepared_file("pope/coco_random", data=tmp_path)
