"""Files that are made to hang a reader or to fill its memory are refused in a second and within 200 MB."""

from __future__ import annotations

import io
import json
import os
import socket
import stat
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from truthgate_eval.analysis.runs.results_files import read_results
from truthgate_eval.data.annotations import read_annotations
from truthgate_eval.data.images import open_image
from truthgate_eval.data.records import read_records
from truthgate_eval.errors import DataError, GateError, TruthGateError
from truthgate_eval.export.safetensors_file import read_header
from truthgate_eval.files import (
    json_text,
    numpy_files,
    open_regular,
    parquet,
    parse_json,
    read_bounded,
    read_json,
    read_json_lines,
    regular,
    sha256,
)
from truthgate_eval.files.numpy_files import read_npy, read_npz
from truthgate_eval.files.parquet import iterate_rows
from truthgate_eval.gating.gate_arguments import parse_layers
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.scores import TruthScores

SECONDS, BYTES = 1.0, 200e6


def check_refused(read: Callable[[], Any], message: str | None) -> None:
    """Expect our error of one line, within the bounds."""
    tracemalloc.start()
    before = time.process_time()
    try:
        with pytest.raises(TruthGateError, match=message) as caught:
            read()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - before < SECONDS and peak < BYTES
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def header(shape: str, descr: str = "'<f8'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def archive(path: Path, members: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


def zeros(megabytes: int) -> bytes:
    count = megabytes << 17
    return header(f"({count // 1024}, 1024)") + bytes(8 * count)


def test_a_zip_bomb_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    bomb = archive(tmp_path / "a.npz", [("scores.npy", zeros(100))])
    assert bomb.stat().st_size < 1e6
    check_refused(lambda: TruthScores.load(bomb), r"shape \(12800, 1024\), which is too large")


def test_many_arrays_that_are_small_each_are_refused_together(tmp_path: Path) -> None:
    members = [("scores.npy", zeros(20)), *((f"control_{n}.npy", zeros(20)) for n in range(4))]
    check_refused(lambda: TruthScores.load(archive(tmp_path / "a.npz", members)), "which is too large")
    more = archive(tmp_path / "b.npz", [(f"a{n}.npy", b"") for n in range(300)])
    check_refused(lambda: read_npz(more, lambda _: True), "lists 300 arrays")
    long_names = archive(tmp_path / "c.npz", [(f"{n}{'a' * 60_000}.npy", b"") for n in range(20)])
    check_refused(lambda: read_npz(long_names, lambda _: True), "has a directory of 1,2.* bytes")
    long_name = archive(tmp_path / "d.npz", [(f"{'a' * 60_000}.npy", b"")])
    check_refused(lambda: read_npz(long_name, lambda _: True), "a.npy in .* is not an array")


@pytest.mark.parametrize(
    "shape", ["(1000000000000, 4)", "(4, 10000000000)", "(999999999999999999, 999999999999999999)"]
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_header_of_a_huge_shape_allocates_nothing(shape: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    content = header(shape) + bytes(64)
    path.write_bytes(content) if suffix == ".npy" else archive(path, [("scores.npy", content)])
    check_refused(lambda: TruthScores.load(path), "which is too large")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header("(2,)", "'|O'") + bytes(16), "expected that of an array of numbers"),
        (header("(2,)", "[('a', '<f8')]") + bytes(16), "expected that of an array of numbers"),
        (header("(2,)", "'<c8'") + bytes(16), "expected that of an array of numbers"),
        (header("(2,)", "'<f8' + __import__('os').name") + bytes(16), "expected that of an array of numbers"),
        (header("(" + "1," * 9 + ")") + bytes(8), "expected that of an array of numbers"),
        (header("(-2,)") + bytes(16), "expected that of an array of numbers"),
        (header("(3,)") + bytes(16), "do not fit its shape"),
        (header("(1,)") + bytes(16), "do not fit its shape"),
        (b"\x93NUMPY\x02\x00" + (1 << 31).to_bytes(4, "little"), "header of more than 10,000 bytes"),
        (b"\x93NUMPY\x09\x00", "not an array in numpy's format"),
        (header("(0, 999999999999999999, 999999999999999999)"), "which is too large"),
        (header("(3,)", "'<U0'"), "expected that of an array of numbers"),
        (header("(0,)", "'<U999999999'"), "expected that of an array of numbers"),
        (b"", "not an array in numpy's format"),
    ],
)  # fmt: skip
def test_an_array_is_of_numbers_and_fills_its_file(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    check_refused(lambda: read_npy(tmp_path / "a.npy"), message)


@pytest.mark.parametrize("array", [
    np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6, dtype="<f4").reshape(2, 3)), np.arange(4, dtype=">i2"),
    np.array("text ß"), np.zeros((0, 3)), np.float16(2.5), np.ones((2, 2), bool),
])  # fmt: skip
def test_arrays_are_read_as_numpy_reads_them(array: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "a.npz", a=array, b=1)
    arrays, names = read_npz(tmp_path / "a.npz", lambda name: name == "a")
    assert names == ["a", "b"] and list(arrays) == ["a"]
    for found in (read_npy(tmp_path / "a.npy"), arrays["a"]):
        np.testing.assert_array_equal(found, np.load(tmp_path / "a.npy"))
        assert found.dtype == np.asarray(array).dtype and found.shape == np.shape(array)


@pytest.mark.parametrize(
    "name", ["../a.npy", "/etc/a.npy", "a/b.npy", "a\\b.npy", "a.pkl", "a\n.npy", "..npy/../a.npy"]
)
def test_a_member_with_another_name_than_an_arrays_is_refused(name: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.npz", [("scores.npy", header("(1, 1)") + bytes(8)), (name, b"")])
    check_refused(lambda: read_npz(path, lambda _: True), "expected arrays only")
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    array = header("(1, 1)") + bytes(8)
    check_refused(
        lambda: TruthScores.load(archive(tmp_path / "a.npz", [("scores.npy", array)] * 2)),
        "scores.npy' 2 times",
    )


def test_names_that_are_there_twice_are_refused_in_headers_and_metadata(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", scores=np.ones((1, 2)), metadata=np.array('{"model": "a", "model": "b"}'))
    check_refused(lambda: TruthScores.load(tmp_path / "a.npz"), "the name 'model' is there twice")
    content = b'{"a": {}, "a": {}}'
    (tmp_path / "a.safetensors").write_bytes(len(content).to_bytes(8, "little") + content)
    check_refused(lambda: read_header(tmp_path / "a.safetensors"), "the name 'a' is there twice")
    many = ",".join(f'"{n}":0' for n in range(50_000)).encode()
    check_refused(
        lambda: parse_json(b'{%s,"49999":0}' % many, "a", unique_names=True), "'49999' is there twice"
    )


@pytest.mark.parametrize("shape", [[9] * 300_000, [1 << 63, 0], [1] * 9])
def test_a_tensor_has_few_dimensions_of_few_digits(shape: list[int], tmp_path: Path) -> None:
    content = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(content).to_bytes(8, "little") + content)
    check_refused(lambda: read_header(tmp_path / "a.safetensors"), "tensor a does not fit the file")


READERS: dict[str, Callable[[Path], Any]] = {
    "open": open_regular,
    "bounded": lambda path: read_bounded(path, 100),
    "sha256": sha256,
    "json": read_json,
    "json lines": lambda path: list(read_json_lines(path)),
    "records": lambda path: list(read_records(path)),
    "annotations": read_annotations,
    "results": read_results,
    "npy": read_npy,
    "npz": lambda path: read_npz(path, lambda _: True),
    "parquet": lambda path: list(iterate_rows(path)),
    "safetensors": read_header,
    "picture": open_image,
    "scores": TruthScores.load,
}


@pytest.mark.parametrize("name", READERS)
def test_pipes_devices_sockets_and_folders_hang_no_reader(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    os.mkfifo("pipe.npz")
    os.symlink("/dev/zero", "link.npz")
    os.mkdir("folder.npz")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.npz")
        for path in map(Path, ("pipe.npz", "link.npz", "folder.npz", "socket.npz")):
            check_refused(lambda path=path: READERS[name](path), None)  # type: ignore[misc]


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    """Caches of hubs consist of links."""
    (tmp_path / "blob").write_text('{"a": 1}')
    (tmp_path / "a.json").symlink_to("blob")
    assert read_json(tmp_path / "a.json") == {"a": 1}


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


def test_files_and_lines_that_are_too_long_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(10 << 30)  # takes no space on the disk
    check_refused(lambda: read_json(tmp_path / "a.json"), "too large: it has 10,737,418,240 bytes")
    check_refused(lambda: list(read_json_lines(tmp_path / "a.json")), "line 1 is too large")
    check_refused(lambda: TruthScores.load(tmp_path / "a.json"), "too large")
    content = (10 << 30).to_bytes(8, "little")
    with (tmp_path / "a.safetensors").open("wb") as file:
        file.write(content)
        file.truncate(11 << 30)
    check_refused(lambda: read_header(tmp_path / "a.safetensors"), "cut off or no safetensors file")


def test_reading_allocates_what_a_file_has_and_not_what_it_may_have(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    tracemalloc.start()
    try:
        assert read_json(tmp_path / "a.json", most=1 << 30) == []
        assert b"Name:" in read_bounded(Path("/proc/self/status"), 1 << 30)  # its size is 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4e6
    check_refused(lambda: read_bounded(Path("/proc/self/status"), 100), "has more than 100 bytes")


def test_a_file_that_grows_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    before = os.stat_result((stat.S_IFREG, 0, 0, 1, 0, 0, 2, 0, 0, 0))
    monkeypatch.setattr(regular.os, "fstat", lambda _: before)
    check_refused(lambda: read_bounded(tmp_path / "a", 100), "written to while it was read: .* 2 bytes")


def test_a_file_of_line_breaks_takes_no_time(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n" * (4 << 20))
    before = time.process_time()
    assert list(read_json_lines(tmp_path / "a.jsonl")) == []
    assert time.process_time() - before < SECONDS


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("bounded", regular),
        ("sha256", regular),
        ("npy", numpy_files),
        ("npz", numpy_files),
        ("parquet", parquet),
    ],
)
def test_a_disk_that_fails_is_our_error(name: str, module: ModuleType, tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

        def fileno(self) -> int:
            return 0

    (tmp_path / "a").touch()
    with mock.patch.object(module, "open_regular", lambda _: Broken()):
        check_refused(lambda: READERS[name](tmp_path / "a"), "Input/output error")


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


def test_an_image_of_too_many_pixels_is_refused(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(content, "PNG")
    (tmp_path / "a.png").write_bytes(content.getvalue())
    check_refused(lambda: open_image(tmp_path / "a.png"), r"Image size \(169000000 pixels\) exceeds")


def test_an_image_that_is_a_program_is_refused(tmp_path: Path) -> None:
    """Pillow starts Ghostscript for EPS, whatever the file's name, and for EPS inside of IPTC."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", "EPS")
    fields = {(3, 20): b"\4", (3, 30): b"\4", (3, 60): b"\1\0", (3, 120): b"\5"}  # 4 by 4, gray, JPEG
    fields[8, 10] = (tmp_path / "a.png").read_bytes()
    iptc = b"".join(bytes([28, *tag]) + len(text).to_bytes(2, "big") + text for tag, text in fields.items())
    (tmp_path / "b.png").write_bytes(iptc)
    assert Image.open(tmp_path / "b.png").format == "IPTC"
    for name in ("a.png", "b.png"):
        check_refused(lambda name=name: open_image(tmp_path / name), "cannot identify image file")  # type: ignore[misc]


@pytest.mark.parametrize(
    "layers", ["0-20000000", "99999999999-99999999999", "1024", "0-" + "9" * 5000, [10**30]]
)
def test_layers_beyond_every_model_are_refused(layers: object, tmp_path: Path) -> None:
    check_refused(lambda: parse_layers(layers), "layers=")
    scores = TruthScores(
        np.ones((2, 2)), metadata={"recommended": {"lam": 1.0, "norm": "none", "layers": layers}}
    )
    path = scores.save(tmp_path / "a.npz")
    check_refused(lambda: GateConfig.parse(str(path)), "layers=")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"model": 5}, "`model` is 5, expected a text"),
        ({"probe": "newton"}, "`probe` is 'newton', expected an object"),
        ({"probe": None}, "`probe` is None, expected an object"),
        ({"probe": {"class_balance": "a"}}, r"`probe\.class_balance` is 'a', expected a number"),
        ({"reliability": {"all": None}}, r"`reliability\.all` is None, expected a number"),
        ({"own_answers": {"accuracy": 0.5}}, "accuracy without documents"),
        ({"own_answers": {"words": 800}}, r"`own_answers\.words` is 800"),
        ({"own_answers": {"words": -1, "spellings": [{"answers": ["a"]}]}}, "an entry without log_probability"),
        ({"recommended": None}, "`recommended` is None"),
        ({"recommended": {"conditions": []}}, r"`recommended\.conditions` is \[\]"),
    ],
)  # fmt: skip
def test_metadata_of_another_type_are_refused_at_load(metadata: Any, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", scores=np.ones((1, 2)), metadata=np.array(json.dumps(metadata)))
    check_refused(lambda: TruthScores.load(tmp_path / "a.npz"), message)


def test_a_layer_number_that_is_one_is_taken() -> None:
    assert parse_layers("0+1022-1023") == (0, 1022, 1023)
    with pytest.raises(GateError, match="no model has a layer 1024"):
        parse_layers("1024")
