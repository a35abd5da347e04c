"""Files that commands write: refused before the work, replaced with a word; names of any length."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from helpers.command_line import truthgate

from truthgate_eval.export.local_paths import without_folders
from truthgate_eval.files import check_folder
from truthgate_eval.gating.scores import TruthScores

LONG = "x" * 300


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return TruthScores(np.ones((1, 2)), metadata={"model": "m", "task": "t"}).save(tmp_path / "a.npz")


def test_a_plot_that_cannot_be_written_is_refused_before_the_artifact_is_read(artifact: Path) -> None:
    with mock.patch.object(TruthScores, "resolve", side_effect=AssertionError("read")):
        done = truthgate("show", str(artifact), "--plot", "none/map.png")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: none/map.png cannot be written: No such file or directory\n"


def test_an_import_says_that_it_replaces_an_artifact(artifact: Path, tmp_path: Path) -> None:
    for replaced in ("", ", which replaces the artifact that was there"):
        done = truthgate("import", "a.npz", "-o", "b.npz", cwd=tmp_path)
        assert done.stdout == f"1 x 2 scores of m -> b.npz{replaced}\n", done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", LONG),
        ("show", f"{LONG}.npz"),
        ("compare", LONG),
        ("compare", f"{LONG}=runs"),
        ("correlate", f"{LONG}=a.npz", LONG),
        ("report", LONG, "-o", "r.html"),
        ("show", "a\0b"),
    ],
)
def test_a_name_that_is_too_long_for_a_file_is_one_line(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = truthgate(*arguments, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_strangers_model_name_of_any_length_is_no_path() -> None:
    assert without_folders(LONG * 20) == LONG * 20


@pytest.mark.parametrize(
    "arguments",
    [
        ("study", "--tasks", "halueval_qa", "-o", "file/out"),
        ("demo", "--folder", "file/out"),
        ("data", "poll", "--images", "none", "--annotations", "none", "--out", "file/out"),
        ("data", "chair-poll", "--images", "none", "--annotations", "none", "--out", "file/out"),
        ("data", "rlhf-v", "--parquet", "none", "--out", "file/out"),
        ("data", "halueval", "none", "--out", "file/out"),
        ("data", "minimal-pairs", "--input", "none", "--out", "file/out"),
    ],
)
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    done = truthgate(*arguments, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.strip() == "error: file/out cannot be written: Not a directory"


def test_a_folder_that_does_not_exist_yet_can_be_one_to_write(tmp_path: Path) -> None:
    assert check_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list(tmp_path.iterdir()) == []
