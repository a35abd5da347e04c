"""Scenes: determined by subset and number, disjoint subsets, and their data set, drawn once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from truthgate_eval.data.chair import read_vocabulary
from truthgate_eval.data.splits import split_documents
from truthgate_eval.data.store import read_rows
from truthgate_eval.errors import DataError
from truthgate_eval.harness.lm_eval import probing as lm_eval_probing
from truthgate_eval.harness.lmms_eval import probing as lmms_eval_probing
from truthgate_eval.metrics.pope import SPLITS
from truthgate_eval.packaged.scenes import (
    COLORS,
    IMAGE_SIZE,
    MAX_OBJECTS,
    MIN_OBJECTS,
    OBJECTS,
    SUBSETS,
    make_scene,
)
from truthgate_eval.packaged.scenes_dataset import make_questions, prepare_scenes, scenes_file

FEW = {"probe": 6, "selection": 4, "test": 8}


def test_subset_and_number_determine_a_scene() -> None:
    one, again = make_scene("test", 3), make_scene("test", 3)
    assert one.image.tobytes() == again.image.tobytes() and one.objects == again.objects
    assert one.image.size == (IMAGE_SIZE, IMAGE_SIZE) and one.image.mode == "RGB"
    with pytest.raises(DataError, match="no subset 'exam': expected one of train"):
        make_scene("exam", 0)


def test_no_image_is_in_two_subsets() -> None:
    images = [make_scene(subset, number).image.tobytes() for subset in SUBSETS for number in range(300)]
    assert len(set(images)) == len(images)


def test_every_object_is_drawn_in_its_color_and_nothing_else_is() -> None:
    """Pixels are counted by their nearest color: no color may be visible without its object."""
    palette = np.array([*COLORS.values(), (230, 230, 230)], dtype=float)
    for number in range(60):
        scene = make_scene("train", number)
        pixels = np.asarray(scene.image, dtype=float).reshape(-1, 1, 3)
        nearest = Counter(np.argmin(((pixels - palette) ** 2).sum(2), axis=1).tolist())
        visible = {color for index, color in enumerate(COLORS) if nearest[index] > 40}
        assert visible == {name.split()[0] for name in scene.objects}


def test_objects_are_few_distinct_and_long_tailed() -> None:
    scenes = [make_scene("train", number) for number in range(1500)]
    assert {len(scene.objects) for scene in scenes} == set(range(MIN_OBJECTS, MAX_OBJECTS + 1))
    assert all(len(set(scene.objects)) == len(scene.objects) for scene in scenes)
    counts = Counter(name for scene in scenes for name in scene.objects)
    assert len(set(OBJECTS)) == 16 and set(counts) == set(OBJECTS)
    assert counts[OBJECTS[0]] > 5 * counts[OBJECTS[-1]] > 0
    assert scenes[0].caption.startswith("A ") and scenes[0].caption.count(" ") >= 5


def test_a_blind_guess_by_frequency_is_right_on_about_seven_of_ten() -> None:
    """The baseline of every accuracy on scenes."""
    train = make_questions([make_scene("train", number) for number in range(1500)])["random"]
    counts = Counter((row["object"], row["answer"]) for row in train)
    test = make_questions([make_scene("test", number) for number in range(800)])["random"]
    guess = {name: "yes" if counts[name, "yes"] >= counts[name, "no"] else "no" for name in OBJECTS}
    accuracy = np.mean([guess[row["object"]] == row["answer"] for row in test])
    assert 0.66 < accuracy < 0.73


def test_questions_are_about_their_own_subset_and_agree_with_the_image(tmp_path: Path) -> None:
    prepared = prepare_scenes(tmp_path, FEW)
    rows = {name: read_rows(prepared.folder / f"{name}.parquet") for name in (*SPLITS, "probe")}
    subsets = {name: {row["image"].split("-")[0] for row in own} for name, own in rows.items()}
    assert subsets.pop("probe") == {"probe"}
    assert all(own == {"selection", "test"} for own in subsets.values())
    for split in SPLITS:
        assert split_documents(rows[split]) == [
            "selection" if row["image"].startswith("selection") else "evaluation" for row in rows[split]
        ]
    for row in rows["random"]:
        subset, number = row["image"].split("-")
        scene = make_scene(subset, int(number))
        assert (
            (row["object"] in scene.objects)
            == (row["answer"] == "yes")
            == (row["object"] in row["caption"].lower())
        )
        assert Path(row["image_path"]).is_file()


def test_the_images_to_describe_are_those_of_the_splits_with_their_objects(tmp_path: Path) -> None:
    folder = prepare_scenes(tmp_path, FEW).folder
    rows = read_rows(folder / "captions.parquet")
    assert {row["image"] for row in rows} == {row["image"] for row in read_rows(folder / "random.parquet")}
    assert Counter(split_documents(rows)) == {"selection": FEW["selection"], "evaluation": FEW["test"]}
    vocabulary = read_vocabulary(folder / "objects.parquet")
    for row in rows:
        subset, number = row["image"].split("-")
        scene = make_scene(subset, int(number))
        assert tuple(row["objects"]) == scene.objects and Path(row["image_path"]).is_file()
        assert tuple(one.object for one in vocabulary.mentions(scene.caption)) == scene.objects
    assert set(vocabulary.objects.values()) == set(OBJECTS)


def test_the_tasks_of_both_harnesses_load_scenes_that_are_drawn_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    prepare_scenes(tmp_path, FEW)
    before = scenes_file("probe").stat().st_mtime_ns
    with_images = lmms_eval_probing.load_dataset(["probe_scenes"])
    with_captions = lm_eval_probing.load_dataset(["probe_scenes_text"])
    assert scenes_file("probe").stat().st_mtime_ns == before
    assert with_images.labels.tolist() == with_captions.labels.tolist()
    assert with_images.rows == with_captions.rows
    context = with_captions.examples[0].context
    assert context.startswith("Context:\nA ") and "Question: Is there a" in context
    load_images = with_images.examples[0].load_images
    assert load_images is not None and load_images()[0].size == (IMAGE_SIZE, IMAGE_SIZE)
    names = [name for name, _ in lmms_eval_probing.load_tasks(["scenes"])]
    assert sorted(names) == sorted(f"scenes_{split}" for split in SPLITS)


def test_scenes_of_an_older_drawing_are_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path))
    monkeypatch.setattr("truthgate_eval.packaged.scenes_dataset.NUM_IMAGES", FEW)
    before = scenes_file("probe").stat().st_mtime_ns
    assert scenes_file("random").parent == tmp_path / "scenes"
    assert scenes_file("probe").stat().st_mtime_ns == before
    monkeypatch.setattr("truthgate_eval.packaged.scenes_dataset.DRAWING_VERSION", 0)
    assert scenes_file("probe").stat().st_mtime_ns > before
