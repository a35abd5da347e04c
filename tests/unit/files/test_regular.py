"""Files of any kind: pipes, devices, folders, links, long ones, and disks that fail."""

from __future__ import annotations

import io
import os
import socket
import stat
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from helpers.bounds import check_refused

from truthgate_eval.analysis.runs.results_files import read_results
from truthgate_eval.data.annotations import read_annotations
from truthgate_eval.data.images import open_image
from truthgate_eval.data.records import read_records
from truthgate_eval.export.safetensors_file import read_header
from truthgate_eval.files import (
    numpy_files,
    open_regular,
    parquet,
    read_bounded,
    read_json,
    read_json_lines,
    read_text,
    regular,
    sha256,
)
from truthgate_eval.files.numpy_files import read_npy, read_npz
from truthgate_eval.files.parquet import iterate_rows
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.lm_eval.tasks import _read_instruction
from truthgate_eval.vision.chat_template import _read_template

READERS: dict[str, Callable[[Path], Any]] = {
    "open": open_regular,
    "bounded": lambda path: read_bounded(path, 100),
    "text": read_text,
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


def test_a_text_is_read_as_python_reads_it_within_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\rc\xc3\x9f\n")
    assert read_text(path) == "a\nb\ncß\n"
    check_refused(lambda: read_text(path, most=5), "too large: it has 12 bytes")
    path.write_bytes(b"\xff")
    check_refused(lambda: read_text(path), "a.txt is not UTF-8 text")
    with path.open("wb") as file:
        file.truncate(10 << 30)
    check_refused(lambda: read_text(path), "too large")


def test_a_prompt_and_a_chat_template_are_read_so(tmp_path: Path) -> None:
    """Both are files that a user names: a device or a pipe in their place would never end."""
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/zero"), tmp_path / "pipe"):
        check_refused(lambda path=path: _read_template(str(path)), "cannot be read")  # type: ignore[misc]
        check_refused(lambda path=path: _read_instruction(str(path)), "needs a prompt file")  # type: ignore[misc]
    with (tmp_path / "large").open("wb") as file:
        file.truncate(10 << 30)
    check_refused(lambda: _read_template(str(tmp_path / "large")), "too large")
    check_refused(lambda: _read_instruction(str(tmp_path / "large")), "too large")
