"""Files: atomic writes, one writer at a time, and JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.processes import run_at_once

from truthgate_eval.errors import DataError, TruthGateError
from truthgate_eval.files import (
    build_once,
    check_file,
    folder_lock,
    read_json_lines,
    replace_folder,
    sha256,
    update_folder,
    write_atomic,
)


def lines(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\u0085"])
def test_a_line_ends_at_a_newline_only(tmp_path: Path, character: str) -> None:
    """JSON strings may contain what `str.splitlines` takes for a line's end."""
    records = [{"text": f"a{character}b"}, {"text": "c"}]
    content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    assert [r for _, r in read_json_lines(lines(tmp_path / "a.jsonl", content), ["text"])] == records


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}')
    assert list(read_json_lines(file, ["a"])) == [(1, {"a": 1}), (2, {"a": 2})]


@pytest.mark.parametrize(
    ("content", "numbers"),
    [(b"\n{}\n\n  \n{}\n\n", [2, 5]), (b"{}\r\r\n{}\n", [1, 3]), (b"\r{}\r{}\r\r\r\n\r\n{}\r\r", [2, 3, 7])],
)
def test_empty_lines_are_skipped_but_counted(tmp_path: Path, content: bytes, numbers: list[int]) -> None:
    file = lines(tmp_path / "a.jsonl", content)
    assert [number for number, _ in read_json_lines(file)] == numbers
    text = file.open(encoding="utf-8").readlines()  # as Python ends lines
    assert [number for number, line in enumerate(text, start=1) if line.strip()] == numbers


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": ', r"a\.jsonl, line 2 is cut off or not JSON: Expecting value"),
        (b'{"a": 1}\n\xff\xfe\n', r"a\.jsonl, line 2 is cut off or not JSON: .*can't decode"),
        (b'{"b": 1}\n', r"a\.jsonl, line 1: no a$"),
        (b"5\n", r"a\.jsonl, line 1: no a$"),
    ],
)
def test_a_bad_line_is_reported_with_file_and_number(tmp_path: Path, content: bytes, message: str) -> None:
    file = lines(tmp_path / "a.jsonl", content)
    with pytest.raises(DataError, match=message):
        list(read_json_lines(file, ["a"]))


def test_only_objects_are_records(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: expected a JSON object, found list"):
        list(read_json_lines(lines(tmp_path / "a.jsonl", "[1]\n")))


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.jsonl: No such file"):
        list(read_json_lines(tmp_path / "none.jsonl"))


def test_an_atomic_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.txt", b"old")
    write_atomic(tmp_path / "a.txt", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.txt", b"new")]
    with pytest.raises(TruthGateError, match="cannot be written: No such file"):
        write_atomic(tmp_path / "none" / "a.txt", b"new")


def test_an_output_file_is_checked_before_the_work(tmp_path: Path) -> None:
    check_file(tmp_path / "a.PNG", ".png")
    (tmp_path / "folder.png").mkdir()
    for path, message in (
        (tmp_path / "a.txt", "ends in .png or .pdf"),
        (tmp_path / "none" / "a.png", "does not exist"),
        (tmp_path / "folder.png", "is a folder"),
    ):
        with pytest.raises(TruthGateError, match=message):
            check_file(path, ".png", ".pdf")


def test_a_digest_is_that_of_sha256sum(tmp_path: Path) -> None:
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(lines(tmp_path / "a", "abc")) == expected


def test_a_folder_is_replaced_as_a_whole_and_only_if_nothing_fails(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(ValueError, match="stop"), replace_folder(folder) as partial:
        (partial / "new").touch()
        raise ValueError("stop")
    assert [path.name for path in folder.iterdir()] == ["old"]
    with replace_folder(folder) as partial:
        (partial / "new").touch()
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert folder.stat().st_mode & 0o777 == 0o755
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model.lock", "model"]


def test_an_update_replaces_entries_of_the_same_name_and_keeps_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    for name in ("images/old", "kept"):
        (folder / name).touch()
    with update_folder(folder) as partial:
        (partial / "images").mkdir()
        (partial / "images" / "new").touch()
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == [
        "images",
        "images/new",
        "kept",
    ]


def test_a_folder_that_cannot_be_written_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write to"), update_folder(tmp_path / "file" / "set"):
        pass


def test_a_lock_can_be_taken_again_by_its_holder(tmp_path: Path) -> None:
    with (
        folder_lock(tmp_path / "set"),
        folder_lock(tmp_path / "set"),
        update_folder(tmp_path / "set") as partial,
    ):
        (partial / "a").touch()
    with folder_lock(tmp_path / "set"):  # it was released
        assert (tmp_path / "set" / "a").exists()


def test_a_built_folder_is_not_built_again(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for _ in range(2):
        build_once(folder, folder.is_dir, folder.mkdir, "building")
    build_once(tmp_path / "other", lambda: True, lambda: pytest.fail("built again"), "building")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model.lock", "model"]


UPDATE = """
from pathlib import Path
from truthgate_eval.files import update_folder
folder = Path({folder!r})
"""
UPDATES = """
for number in range(40):
    with update_folder(folder) as partial:
        (partial / "images").mkdir()
        for name in range(20):
            (partial / "images" / str(name)).write_text(str(number))
"""


def test_two_processes_can_update_one_folder_at_once(tmp_path: Path) -> None:
    """One of them ended with "Directory not empty" where both replaced a folder in it."""
    folder = tmp_path / "set"
    for process in run_at_once(UPDATE.format(folder=str(folder)), UPDATES):
        assert process.returncode == 0, process.stderr
    assert [path.name for path in folder.iterdir()] == ["images"]
    assert {path.read_text() for path in (folder / "images").iterdir()} == {"39"}


def test_a_process_that_died_with_a_lock_does_not_keep_it(tmp_path: Path) -> None:
    setup = "import os\nfrom pathlib import Path\nfrom truthgate_eval.files import folder_lock"
    action = f"with folder_lock(Path({str(tmp_path / 'set')!r})):\n    os._exit(3)"
    assert [process.returncode for process in run_at_once(setup, action, processes=1)] == [3]
    with folder_lock(tmp_path / "set"):
        pass
