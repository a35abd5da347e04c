"""JSON that is deep, large in memory, or nothing but line breaks."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest
from helpers.bounds import BYTES, SECONDS, check_refused

from truthgate_eval.errors import DataError
from truthgate_eval.files import (
    json_text,
    parse_json,
    read_json,
    read_json_lines,
)


@pytest.mark.parametrize("content", [b"[" * 10**6, b'{"a":' * 100_000, b"[" * 101 + b"]" * 101])
def test_json_of_many_levels_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    check_refused(lambda: read_json(tmp_path / "a.json"), "nested too deeply")
    check_refused(lambda: list(read_json_lines(tmp_path / "a.json")), "nested too deeply")


@pytest.mark.parametrize(
    "unit",
    [
        b"[],", b"{},", b'{"a":{}},', b'"ab",', b"0.5,", b'"\xf0\x9f\x98\x80aaaaaaaaaaaaaa",',
        b'"\\ud83d\\ude00' + b"a" * 3000 + b'",',
    ],
)  # fmt: skip
def test_json_that_would_fill_the_memory_is_refused(unit: bytes) -> None:
    content = b"[" + unit * ((31 << 20) // len(unit)) + b"0]"
    check_refused(lambda: parse_json(content, "a"), "would take more than 160 MiB of memory")


@pytest.mark.parametrize(
    "unit",
    [
        b"[],", b"{},", b'{"a":{}},', b'"ab",', b"0.5,", b'"aaaaaaaaaaaaaaaaaaaaaaaaaaaa",',
        b'"\\u4e00' + b"a" * 60_000 + b'",', b'"\\uD83D\\uDE00' + b"a" * 60_000 + b'",',
    ],
)  # fmt: skip
def test_json_that_is_read_takes_no_more_than_was_reckoned(unit: bytes) -> None:
    count = (32 << 20) // len(unit)
    while True:  # as much as is let through
        count //= 2
        content = b"[" + unit * count + b"0]"
        tracemalloc.start()
        try:
            parse_json(content, "a")
            peak = tracemalloc.get_traced_memory()[1]
            break
        except DataError as error:
            assert "160 MiB" in str(error)
        finally:
            tracemalloc.stop()
    assert peak + len(content) < json_text._memory(content) and peak < BYTES


def test_a_file_of_line_breaks_takes_no_time(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n" * (4 << 20))
    before = time.process_time()
    assert list(read_json_lines(tmp_path / "a.jsonl")) == []
    assert time.process_time() - before < SECONDS
