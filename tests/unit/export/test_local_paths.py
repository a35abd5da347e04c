"""Paths of this machine in texts that are passed on."""

from __future__ import annotations

from pathlib import Path

import pytest

from truthgate_eval.export.local_paths import without_folders, without_local_paths


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/ann/models/vicuna", "vicuna"),
        ("/home/ann bell/models/vicuna", "vicuna"),
        ("../../home/ann/x.npz", "x.npz"),
        ("../../home/ann bell/x.npz", "x.npz"),
        ("from ../../home/ann/x.npz", "from x.npz"),
        ("/home/ann/x, and then 3/4", "x, and then 3/4"),
        ("pretrained=/home/ann/vicuna,lam=1", "pretrained=vicuna,lam=1"),
        ("shuffled:/home/ann/a.npz:3", "shuffled:a.npz:3"),
        ("probed on ~/data/qa.jsonl, then on ~ann/x/y.json", "probed on qa.jsonl, then on y.json"),
        ("see file:///home/ann/notes.txt", "see notes.txt"),
        (r"C:\Users\ann\a.npz and D:/data/b.npz", "a.npz and b.npz"),
        ("first line\n/home/ann/x", "first line\nx"),
        ("owner/base", "owner/base"),
        (
            "https://host/a/b and hf://owner/repo@main/a.npz",
            "https://host/a/b and hf://owner/repo@main/a.npz",
        ),
        ("yes/no, 1/2 of them, a / b", "yes/no, 1/2 of them, a / b"),
        (r"model\.layers\.(0|1)\.o_proj", r"model\.layers\.(0|1)\.o_proj"),
    ],
)
def test_a_path_is_cut_to_its_last_name(text: str, expected: str) -> None:
    assert without_local_paths(text) == expected
    assert without_local_paths({"a": [{text: text}], "n": 1}) == {"a": [{expected: expected}], "n": 1}


def test_keys_that_end_in_one_name_stay_apart() -> None:
    assert without_local_paths({"/a/x": 1, "/b/x": 2, "x": 3}) == {"x": 1, "x+": 2, "x++": 3}


def test_a_relative_path_that_exists_is_one_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert without_folders("models/mine") == "mine" and without_folders("owner/base") == "owner/base"
    assert without_folders("shuffled:hf://owner/repo/a.npz:3") == "shuffled:hf://owner/repo/a.npz:3"
