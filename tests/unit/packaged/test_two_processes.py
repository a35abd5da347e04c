"""What is made at its first use, when two processes use it for the first time at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.processes import run_at_once

from truthgate_eval.data.store import read_rows

# Each setup defines `use`, and slows the build down so that the second process arrives while it runs.
SCENES = """
import time
from truthgate_eval.packaged import scenes_dataset

prepare = scenes_dataset.prepare_scenes

def slow_prepare(out):
    time.sleep(1)
    return prepare(out, {"probe": 4, "selection": 4, "test": 4})

scenes_dataset.prepare_scenes = slow_prepare

def use():
    return scenes_dataset.scenes_file("random")
"""
SMOLLM2 = """
import time
from pathlib import Path
from truthgate_eval.files import replace_folder
from truthgate_eval.packaged import smollm2

def slow_convert(gguf, folder):
    with replace_folder(folder) as partial:
        time.sleep(1)
        (partial / "config.json").write_text("{}")

smollm2.packaged_file = lambda *parts: Path("model.gguf")
smollm2._convert = slow_convert

def use():
    return Path(smollm2.resolve_smollm2("smollm2-135m-instruct")) / "config.json"
"""
CHILD = """
import time
from dataclasses import replace
from pathlib import Path
from truthgate_eval.packaged import models

NAME = "smollm2-135m-halueval-early"

def slow_assemble(weights, folder):
    time.sleep(1)
    (folder / "config.json").write_text("{}")

models.CHILDREN[NAME] = replace(models.CHILDREN[NAME], assemble=slow_assemble)
models.shipped = lambda folder: models.cache_dir() / folder
weights = models.shipped("packaged_weights") / NAME
weights.mkdir(parents=True, exist_ok=True)
for file in models.CHILDREN[NAME].files:
    (weights / file).touch()

def use():
    return Path(models.resolve_packaged(NAME, "text")) / "config.json"
"""


@pytest.mark.parametrize(
    ("setup", "announcement", "folder"),
    [
        (SCENES, "drawing 1750 scenes into", "data/scenes"),
        (SMOLLM2, "converting model.gguf once into", "models/smollm2-135m-instruct"),
        (
            CHILD,
            "assembling smollm2-135m-halueval-early once in",
            "models/smollm2-135m-halueval-early",
        ),
    ],
    ids=["scenes", "smollm2", "child"],
)
def test_the_second_process_waits_and_finds_the_work_done(
    setup: str, announcement: str, folder: str, tmp_path: Path
) -> None:
    environment = {"TRUTHGATE_CACHE": str(tmp_path), "TRUTHGATE_DATA": str(tmp_path / "data")}
    finished = run_at_once(setup, "file = use()\nassert file.is_file()\nprint(file)", **environment)
    assert [process.returncode for process in finished] == [0, 0], [process.stderr for process in finished]
    lines = sorted(line for process in finished for line in process.stderr.splitlines())
    assert len(lines) == 2, lines
    assert lines[0].startswith(announcement)
    assert lines[1] == f"waiting for another process that is writing {tmp_path / folder}"
    assert finished[0].stdout == finished[1].stdout
    assert [path.name for path in (tmp_path / folder).iterdir() if path.name.startswith(".")] == []


def test_two_processes_can_prepare_one_data_set_at_once(tmp_path: Path) -> None:
    """One of them ended with "Directory not empty" where both replaced the folder of images."""
    setup = "from pathlib import Path\nfrom truthgate_eval.packaged.scenes_dataset import prepare_scenes"
    action = f"for _ in range(20):\n    prepare_scenes(Path({str(tmp_path)!r}), dict(probe=60, selection=9, test=9))"
    for process in run_at_once(setup, action):
        assert process.returncode == 0, process.stderr
    rows = read_rows(tmp_path / "scenes" / "random.parquet")
    assert rows and all(Path(row["image_path"]).is_file() for row in rows)
    assert json.loads((tmp_path / "scenes" / "prepared.json").read_text())["rows"]["random"] == len(rows)
