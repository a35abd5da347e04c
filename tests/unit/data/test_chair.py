"""CHAIR's data: objects on images from categories, captions and synonyms, prepared for the tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.images import save_image

from truthgate_eval.data.chair import (
    prepare_chair,
    prepare_chair_poll,
    read_captions,
    read_synonyms,
    read_vocabulary,
)
from truthgate_eval.data.store import prepared_file, read_rows, read_source, write_dataset
from truthgate_eval.errors import DataError
from truthgate_eval.files import sha256

SYNONYMS = "person, woman, man\ndog, puppy, \nhot dog\n\nbicycle,bike\ntv, television\n"
NAMES = [f"COCO_val2014_{number:012}.jpg" for number in range(1, 5)]


@pytest.fixture
def coco(tmp_path: Path) -> dict[str, Path]:
    """COCO's files for four images, the list of synonyms, and the images."""
    images = [{"id": n + 1, "file_name": name} for n, name in enumerate(NAMES)]
    categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 72, "name": "tv"}]
    categories.append({"id": 2, "name": "bicycle"})
    on_images = [(1, 18), (1, 18), (2, 1), (2, 72), (3, 2)]  # none on the fourth
    annotations = [{"image_id": image, "category_id": category} for image, category in on_images]
    said = [
        (1, "A woman and her puppies."), (1, "Hot dogs!"), (2, "Nothing."), (4, "A bike."), (99, "A dog."),
    ]  # fmt: skip
    captions = [{"id": n, "image_id": image, "caption": text} for n, (image, text) in enumerate(said)]
    contents = {
        "instances": {"images": images, "annotations": annotations, "categories": categories},
        "captions": {"images": images, "annotations": captions},
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "synonyms.txt").write_text(SYNONYMS)
    for name in NAMES:
        save_image(tmp_path / "images" / name)
    files = {name: tmp_path / f"{name}.json" for name in contents}
    return {**files, "synonyms": tmp_path / "synonyms.txt", "images": tmp_path / "images"}


def prepare(coco: dict[str, Path], out: Path, **options: Any) -> dict[str, list[str]]:
    """The objects by image that are prepared."""
    prepared = prepare_chair(coco["instances"], [coco["images"]], out, synonyms=coco["synonyms"], **options)
    rows = read_rows(prepared.folder / "test.parquet")
    assert all(Path(row["image_path"]).is_file() for row in rows)
    return {row["image"]: row["objects"] for row in rows}


def test_the_objects_on_an_image_are_its_categories_and_those_of_its_captions(
    coco: dict[str, Path], tmp_path: Path
) -> None:
    assert prepare(coco, tmp_path / "out") == dict(
        zip(NAMES, [["dog"], ["person", "tv"], ["bicycle"], []], strict=True)
    )
    with_captions = prepare(coco, tmp_path / "out", captions=coco["captions"])
    assert with_captions == dict(
        zip(NAMES, [["dog", "hot dog", "person"], ["person", "tv"], ["bicycle"], ["bicycle"]], strict=True)
    )


def test_the_vocabulary_and_the_sources_are_kept_and_the_list_itself_is_not_copied(
    coco: dict[str, Path], tmp_path: Path
) -> None:
    prepare(coco, tmp_path, captions=coco["captions"])
    vocabulary = read_vocabulary(prepared_file("chair/objects", data=tmp_path))
    assert vocabulary.object_of("Television") == "tv" and vocabulary.object_of("cat") is None
    assert [one.object for one in vocabulary.mentions("puppies eat hot dogs")] == ["dog", "hot dog"]
    source = read_source(tmp_path / "chair")
    assert source["synonyms"] == {"file": str(coco["synonyms"]), "sha256": sha256(coco["synonyms"])}
    assert source["captions"]["sha256"] == sha256(coco["captions"])
    assert not list((tmp_path / "chair").rglob("*.txt"))


def test_a_limit_chooses_images_by_the_seed(coco: dict[str, Path], tmp_path: Path) -> None:
    chosen = [set(prepare(coco, tmp_path, limit=2, seed=seed)) for seed in (0, 0, 1, 2, 3)]
    assert all(len(own) == 2 for own in chosen) and chosen[0] == chosen[1]
    assert len(set(map(frozenset, chosen))) > 1


def test_a_missing_image_is_named_or_left_out(coco: dict[str, Path], tmp_path: Path) -> None:
    (coco["images"] / NAMES[2]).unlink()
    with pytest.raises(DataError, match=rf"1 images are not in .*{NAMES[2]}.*--allow-missing"):
        prepare(coco, tmp_path)
    assert list(prepare(coco, tmp_path, allow_missing=True)) == [*NAMES[:2], NAMES[3]]


def test_a_category_that_the_list_does_not_have_is_named(coco: dict[str, Path], tmp_path: Path) -> None:
    coco["synonyms"].write_text("person, woman\ndog\n")
    with pytest.raises(DataError, match=r"synonyms.txt has no line with tv, bicycle: .*chair-poll"):
        prepare(coco, tmp_path)


def test_captions_of_other_images_are_refused(coco: dict[str, Path], tmp_path: Path) -> None:
    other = {
        "images": [{"id": 1, "file_name": "x.jpg"}],
        "annotations": [{"image_id": 1, "caption": "A dog"}],
    }
    coco["captions"].write_text(json.dumps(other))
    with pytest.raises(DataError, match="has captions of 1 images, and none of the annotated ones"):
        prepare(coco, tmp_path, captions=coco["captions"])


def test_captions_by_file_name_without_those_of_unlisted_images(coco: dict[str, Path]) -> None:
    assert read_captions(coco["captions"]) == {
        NAMES[0]: ["A woman and her puppies.", "Hot dogs!"], NAMES[1]: ["Nothing."], NAMES[3]: ["A bike."]
    }  # fmt: skip
    coco["captions"].write_text("[]")
    with pytest.raises(DataError, match="is not COCO's captions file: no list of images"):
        read_captions(coco["captions"])


def test_a_list_of_synonyms_has_names_between_commas_a_line_for_each_object(tmp_path: Path) -> None:
    file = tmp_path / "synonyms.txt"
    file.write_bytes(b"\xef\xbb\xbfdog, puppy, \r\n\r\n , \r\ntv,television")
    assert read_synonyms(file) == [["dog", "puppy"], ["tv", "television"]]
    for content, message in (
        (b" ,\n", "has no names"), (b"\xff", "not UTF-8"), (b"a" * (1 << 21), "too large")
    ):  # fmt: skip
        file.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_synonyms(file)


def own_images(tmp_path: Path) -> Path:
    lines = [
        {"image": "a.png", "objects": ["Bike", "traffic cone"]}, {"image": "b.png", "objects": ["dog"]},
        {"image": "c.png", "objects": []},
    ]  # fmt: skip
    for line in lines:
        save_image(tmp_path / "images" / str(line["image"]))
    file = tmp_path / "annotations.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_ones_own_images_need_no_synonyms(tmp_path: Path) -> None:
    prepared = prepare_chair_poll(own_images(tmp_path), [tmp_path / "images"], tmp_path / "out")
    assert prepared.files == {"test": 2, "objects": 3}
    assert prepared.notes == ["1 annotated with no object: left out"]
    vocabulary = read_vocabulary(prepared.folder / "objects.parquet")
    assert [one.object for one in vocabulary.mentions("Bikes, traffic cones and a puppy")] == [
        "bike", "traffic cone"
    ]  # fmt: skip


def test_ones_own_objects_join_those_of_the_synonyms(tmp_path: Path) -> None:
    synonyms = tmp_path / "synonyms.txt"
    synonyms.write_text(SYNONYMS)
    prepared = prepare_chair_poll(
        own_images(tmp_path), [tmp_path / "images"], tmp_path / "out", synonyms=synonyms
    )
    rows = read_rows(prepared.folder / "test.parquet")
    assert [row["objects"] for row in rows] == [["bicycle", "traffic cone"], ["dog"]]
    vocabulary = read_vocabulary(prepared.folder / "objects.parquet")
    assert [one.object for one in vocabulary.mentions("Bikes, traffic cones and a puppy")] == [
        "bicycle", "traffic cone", "dog"
    ]  # fmt: skip


def test_a_damaged_vocabulary_is_told_to_be_prepared_again(tmp_path: Path) -> None:
    write_dataset(tmp_path / "chair", {"objects": [{"object": "dog"}]}, source={})
    with pytest.raises(DataError, match="has no lists of names: prepare the data set again"):
        read_vocabulary(tmp_path / "chair" / "objects.parquet")
