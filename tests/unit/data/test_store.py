"""Prepared data sets: written as a whole, and found by name."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pytest

from truthgate_eval.data.store import PROVENANCE_FILE, prepared_file, read_rows, read_source, write_dataset
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


def test_a_column_that_the_first_row_lacks_is_kept(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", {"a": [{"x": 1}, {"x": 2, "y": "b"}, {"y": "c"}]}, source={})
    assert read_rows(tmp_path / "set" / "a.parquet") == [
        {"x": 1, "y": None},
        {"x": 2, "y": "b"},
        {"x": None, "y": "c"},
    ]


def test_a_folders_name_is_no_column(tmp_path: Path) -> None:
    """pyarrow takes a folder x=1 for a partition, unless it is asked for the file."""
    write_dataset(tmp_path / "x=1", {"a": [{"y": 2}]}, source={})
    assert read_rows(tmp_path / "x=1" / "a.parquet") == [{"y": 2}]


def test_a_file_with_one_damaged_byte_ends_in_rows_or_in_an_error_of_one_line(tmp_path: Path) -> None:
    """pyarrow raises OSError and UnicodeDecodeError for some of them, beside its own classes."""
    rows = [{"row": n, "text": "abc", "image": {"bytes": b"content", "path": "x"}} for n in range(3)]
    write_dataset(tmp_path / "set", {"a": rows}, source={})
    content = (tmp_path / "set" / "a.parquet").read_bytes()
    causes = set()
    for position in range(4, len(content) - 4, 4):
        for value in (0, 255):
            damaged = tmp_path / "damaged.parquet"
            damaged.write_bytes(content[:position] + bytes([value]) + content[position + 1 :])
            try:
                read_rows(damaged)
            except DataError as error:
                assert "\n" not in str(error)
                causes.add(type(error.__cause__))
    assert {OSError, UnicodeDecodeError, pyarrow.ArrowInvalid} <= causes


def test_a_data_sets_source_is_empty_where_its_provenance_is_damaged(tmp_path: Path) -> None:
    assert read_source(tmp_path) == {}
    for content in (b'{"source": {"drawn": 2', b"[]", b'{"source": 5}', b"{}", b"\xff", b"[" * 2000):
        (tmp_path / PROVENANCE_FILE).write_bytes(content)
        assert read_source(tmp_path) == {}
    write_dataset(tmp_path, {"a": [{"x": 1}]}, source={"drawn": 2})
    assert read_source(tmp_path) == {"drawn": 2}
