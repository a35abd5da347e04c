"""Scenes: drawn alike from a seed, parts that share no picture, polls and probing tasks that load by name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from truthgate_eval.data.store import read_rows
from truthgate_eval.errors import DataError
from truthgate_eval.gating.sweep import split_documents
from truthgate_eval.harness.lm_eval import probing as lm_eval_probing
from truthgate_eval.harness.lmms_eval import probing as lmms_eval_probing
from truthgate_eval.metrics.pope import SPLITS
from truthgate_eval.packaged.scenes import COLOURS, FEWEST, MOST, OBJECTS, PARTS, SIZE, make_scene
from truthgate_eval.packaged.scenes_dataset import make_questions, prepare_scenes, scenes_file

FEW = {"probe": 6, "selection": 4, "test": 8}


def test_a_scene_is_its_part_and_number() -> None:
    one, again = make_scene("test", 3), make_scene("test", 3)
    assert one.image.tobytes() == again.image.tobytes() and one.objects == again.objects
    assert one.image.size == (SIZE, SIZE) and one.image.mode == "RGB"
    with pytest.raises(DataError, match="no part 'exam': expected one of train"):
        make_scene("exam", 0)


def test_parts_share_no_picture() -> None:
    seen = [make_scene(part, number).image.tobytes() for part in PARTS for number in range(300)]
    assert len(set(seen)) == len(seen)


def test_every_object_is_drawn_in_its_colour_and_nothing_else_is() -> None:
    """Pixels are counted by their nearest colour: an object that is not named must not be seen."""
    palette = np.array([*COLOURS.values(), (230, 230, 230)], dtype=float)
    for number in range(60):
        scene = make_scene("train", number)
        pixels = np.asarray(scene.image, dtype=float).reshape(-1, 1, 3)
        nearest = Counter(np.argmin(((pixels - palette) ** 2).sum(2), axis=1).tolist())
        drawn = {colour for place, colour in enumerate(COLOURS) if nearest[place] > 40}
        assert drawn == {name.split()[0] for name in scene.objects}


def test_objects_are_few_distinct_and_long_tailed() -> None:
    scenes = [make_scene("train", number) for number in range(1500)]
    assert {len(scene.objects) for scene in scenes} == set(range(FEWEST, MOST + 1))
    assert all(len(set(scene.objects)) == len(scene.objects) for scene in scenes)
    counts = Counter(name for scene in scenes for name in scene.objects)
    assert len(set(OBJECTS)) == 16 and set(counts) == set(OBJECTS)
    assert counts[OBJECTS[0]] > 5 * counts[OBJECTS[-1]] > 0
    assert scenes[0].caption.startswith("A ") and scenes[0].caption.count(" ") >= 5


def test_a_blind_guess_by_frequency_is_right_on_about_seven_of_ten() -> None:
    """What every accuracy on scenes has to be held against."""
    train = make_questions([make_scene("train", number) for number in range(1500)])["random"]
    asked = Counter((row["object"], row["answer"]) for row in train)
    test = make_questions([make_scene("test", number) for number in range(800)])["random"]
    guess = {name: "yes" if asked[name, "yes"] >= asked[name, "no"] else "no" for name in OBJECTS}
    right = np.mean([guess[row["object"]] == row["answer"] for row in test])
    assert 0.66 < right < 0.73


def test_polls_keep_the_parts_apart_and_ask_what_is_drawn(tmp_path: Path) -> None:
    prepared = prepare_scenes(tmp_path, FEW)
    rows = {name: read_rows(prepared.folder / f"{name}.parquet") for name in (*SPLITS, "probe")}
    pictures = {name: {row["image"].split("-")[0] for row in some} for name, some in rows.items()}
    assert pictures.pop("probe") == {"probe"}
    assert all(parts == {"selection", "test"} for parts in pictures.values())
    for split in SPLITS:
        assert split_documents(rows[split]) == [
            "selection" if row["image"].startswith("selection") else "evaluation" for row in rows[split]
        ]
    for row in rows["random"]:
        part, number = row["image"].split("-")
        scene = make_scene(part, int(number))
        assert (
            (row["object"] in scene.objects)
            == (row["answer"] == "yes")
            == (row["object"] in row["caption"].lower())
        )
        assert Path(row["image_path"]).is_file()


def test_scenes_load_by_name_and_are_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    prepare_scenes(tmp_path, FEW)
    before = scenes_file("probe").stat().st_mtime_ns
    pictured = lmms_eval_probing.load_dataset(["probe_scenes"])
    text = lm_eval_probing.load_dataset(["probe_scenes_text"])
    assert scenes_file("probe").stat().st_mtime_ns == before
    assert pictured.labels.tolist() == text.labels.tolist() and pictured.rows == text.rows
    assert (
        text.examples[0].context.startswith("Context:\nA ")
        and "Question: Is there a" in text.examples[0].context
    )
    assert pictured.examples[0].load_images is not None and pictured.examples[0].load_images()[0].size == (
        SIZE,
        SIZE,
    )
    names = [name for name, _ in lmms_eval_probing.load_tasks(["scenes"])]
    assert sorted(names) == sorted(f"scenes_{split}" for split in SPLITS)
