"""Records of data files: JSON lines and JSON lists are one format, and fields have the types they should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from helpers.mutations import nest

from truthgate_eval.data.records import Record, read_records, unify_identifiers
from truthgate_eval.errors import DataError

RECORDS = [{"text": "a\u2028b", "n": 1}, {"text": "c\u0085", "n": 2}]
LINES = "\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS)


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        "\ufeff" + LINES,
        LINES.replace("\n", "\r\n") + "\r\n\r\n",
        LINES.replace("\n", "\n\n"),
        json.dumps(RECORDS),
        "\ufeff \n" + json.dumps(RECORDS, indent=1, ensure_ascii=False),
    ],
    ids=["lines", "mark", "windows", "empty lines", "list", "mark and list"],
)
def test_a_file_gives_the_records_that_datasets_reads(tmp_path: Path, content: str) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content.encode())
    assert [record.fields for record in read_records(file)] == RECORDS
    if "\ufeff" not in content:  # datasets stops at a byte-order mark, which editors on Windows write
        found = datasets.Dataset.from_json(str(file), cache_dir=str(tmp_path / "cache"), keep_in_memory=True)
        assert list(found) == RECORDS


def test_lines_end_as_python_ends_them(tmp_path: Path) -> None:
    """POPE's evaluation reads its files line by line with `open`."""
    file = tmp_path / "a.json"
    file.write_bytes(LINES.replace("\n", "\r").encode())
    with file.open(encoding="utf-8") as lines:
        expected = [json.loads(line) for line in lines]
    assert [record.fields for record in read_records(file)] == expected == RECORDS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1}, 5]', r"a\.json, record 1: expected a JSON object, found int$"),
        (b'[{"a": 1}', r"a\.json is cut off or not JSON: Expecting ',' delimiter$"),
        (b'{"a": 1}\n5', r"a\.json, line 2: expected a JSON object, found int$"),
        (b'{"a": 1}\n{"a"', r"a\.json, line 2 is cut off or not JSON: Expecting ':' delimiter$"),
        (b"[" * 200_000, r"a\.json is JSON that is nested too deeply to be read$"),
        (b'{"a":' * 200_000, r"a\.json, line 1 is JSON that is nested too deeply to be read$"),
        (b'{"a": ' + b"9" * 5000 + b"}", r"line 1 is cut off or not JSON: Exceeds the limit"),
    ],
)
def test_a_file_that_is_no_list_of_records_is_reported(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_records(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a ", "a "),
        (7, "7"),
        (2.5, "2.5"),
        (None, "f: no a$"),
        (float("nan"), "f: no a$"),
        (float("inf"), "f: a is inf, expected a text"),
        (True, "f: a is True, expected a text"),
        (["a"], r"f: a is \['a'\], expected a text"),
        (" \u200b", "f: a is empty"),
        ("a\ud800", "f: a has half of a character, a lone surrogate: 'a"),
    ],
)
def test_a_text_is_a_text_or_a_number(value: object, expected: str) -> None:
    record = Record({"a": value}, "f")
    if expected.startswith("f: "):
        with pytest.raises(DataError, match=f"^{expected}"):
            record.text("a")
    else:
        assert record.text("a") == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3),
        (3.0, 3),
        ("3", 3),
        (2**63 - 1, 2**63 - 1),
        ("007", None),
        ("1_0", None),
        ("\u0663", None),  # int() reads it as 3
        (3.5, None),
        (True, None),
        (2**63, None),
        (str(2**63), None),
        ({}, None),
    ],
)
def test_a_whole_number_is_one_that_is_written_as_such(value: object, expected: int | None) -> None:
    if expected is None:
        with pytest.raises(DataError, match=r"^f: a "):
            Record({"a": value}, "f").integer("a")
    else:
        assert Record({"a": value}, "f").integer("a") == expected


@pytest.mark.parametrize(
    ("identifiers", "expected"),
    [
        ([1, "2", "-3", 0], [1, 2, -3, 0]),
        ([1, "a"], ["1", "a"]),
        (["7", "007"], ["7", "007"]),
        (["1", str(2**63)], ["1", str(2**63)]),
        ([], []),
    ],
)
def test_identifiers_of_a_column_have_one_type(identifiers: list[Any], expected: list[Any]) -> None:
    assert unify_identifiers(identifiers) == expected


def test_a_message_shows_little_of_a_long_or_deep_value() -> None:
    # `repr` of the first raises RecursionError.
    for value in (nest(2000), ["x" * 10_000] * 1000, {str(n): n for n in range(1000)}):
        with pytest.raises(DataError) as caught:
            Record({"a": value}, "f").text("a")
        assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)
