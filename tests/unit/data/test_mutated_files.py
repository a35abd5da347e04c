"""Every reader of data files, on files that were changed at random: a valid object or our own error."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from helpers.data_readers import DATA_READERS as READERS
from helpers.data_readers import write_images
from helpers.mutations import change_values
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from truthgate_eval.errors import TruthGateError

_BYTES = st.sampled_from(
    [
        b"",
        b"\xff",
        b"\0",
        b"\r",
        b"\n",
        b"\xef\xbb\xbf",
        b"\xe2\x80\xa8",
        b"]",
        b"}",
        b",",
        b'"',
        b"[" * 200_000,
    ]
)


@st.composite
def mutated(draw: st.DrawFn, content: Any, suffix: str) -> bytes:
    """A file of that content, with values replaced or removed, and with bytes inserted, removed or cut off."""
    content = copy.deepcopy(content)
    change_values(draw, content, changes=3)
    data = _serialize(content, suffix, one_value=draw(st.booleans()))
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.one_of(st.integers(start, min(start + 8, len(data))), st.just(len(data))))
        data = data[:start] + draw(_BYTES) + data[end:]
    return data


def _serialize(content: Any, suffix: str, *, one_value: bool) -> bytes:
    if suffix == ".parquet":
        sink = pyarrow.BufferOutputStream()
        try:
            rows = [row if isinstance(row, dict) else {"row": row} for row in content]
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
        except (pyarrow.ArrowException, UnicodeEncodeError, OverflowError, TypeError):
            assume(False)  # values that no Parquet file holds together
        return bytes(sink.getvalue())
    if suffix == ".json" or one_value or not isinstance(content, list):
        return json.dumps(content).encode()
    return "\n".join(json.dumps(record) for record in content).encode()


def _write(folder: Path, name: str, data: bytes) -> tuple[Path, Path]:
    write_images(folder)
    file = folder / f"mutated{READERS[name][1]}"
    file.write_bytes(data)
    return file, folder


@pytest.mark.parametrize("name", READERS)
def test_the_unchanged_file_is_read(name: str, tmp_path: Path) -> None:
    content, suffix, reader = READERS[name]
    assert reader(*_write(tmp_path, name, _serialize(content, suffix, one_value=False)))


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)
def test_a_mutated_file_ends_in_a_valid_object_or_in_our_error(name: str, data: st.DataObject) -> None:
    content, suffix, reader = READERS[name]
    file = data.draw(mutated(content, suffix))
    with tempfile.TemporaryDirectory() as folder:
        try:
            reader(*_write(Path(folder), name, file))
        except TruthGateError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000
