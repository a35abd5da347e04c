"""Archives and arrays in numpy's format, and the headers of safetensors, within bounds."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.bounds import check_refused

from truthgate_eval.export.safetensors_file import read_header
from truthgate_eval.files import (
    parse_json,
)
from truthgate_eval.files.numpy_files import read_npy, read_npz
from truthgate_eval.gating.scores import TruthScores


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
