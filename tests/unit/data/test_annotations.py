"""Annotated images: COCO's instances file and JSON lines, with one rule for the names of objects."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.images import save_image
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO

from truthgate_eval.data.annotations import AnnotatedImage, read_annotations
from truthgate_eval.data.poll import prepare_poll
from truthgate_eval.data.store import read_rows
from truthgate_eval.errors import DataError

NFC, NFD = "caf\u00e9", "cafe\u0301"


def write_coco(folder: Path, objects: Sequence[Sequence[str]], **changes: Any) -> Path:
    """COCO's instances file, with a category of its own for each spelling."""
    names = list(dict.fromkeys(name for own in objects for name in own))
    coco = {
        "images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(len(objects))],
        "annotations": [
            {"image_id": n, "category_id": names.index(name)} for n, own in enumerate(objects) for name in own
        ],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names)],
    }
    (folder / "instances.json").write_text(json.dumps({**coco, **changes}), encoding="utf-8")
    return folder / "instances.json"


def write_lines(folder: Path, objects: Sequence[Sequence[str]]) -> Path:
    lines = [json.dumps({"image": f"{n}.jpg", "objects": own}) + "\n" for n, own in enumerate(objects)]
    (folder / "lines.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "lines.jsonl"


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        ([["dog ", "dog"], ["dog"]], [("dog",), ("dog",)]),
        ([["hot  dog", "hot\u00a0dog"]], [("hot dog",)]),
        ([["Dog", "cat"], ["dog"], ["dog"]], [("dog", "cat"), ("dog",), ("dog",)]),
        ([["TV"], ["TV"], ["tv"]], [("TV",), ("TV",), ("TV",)]),
        ([["Dog"], ["dog"]], [("dog",), ("dog",)]),
        ([[NFD, NFC], [NFD]], [(NFC,), (NFC,)]),
        ([["dog\u200b"], ["dog"], ["\u2060dog"]], [("dog",), ("dog",), ("dog",)]),
        ([["Stra\u00dfe", "Strasse"]], [("Stra\u00dfe", "Strasse")]),
    ],
)
def test_both_formats_have_one_name_for_an_object(
    tmp_path: Path, objects: list[list[str]], expected: list[tuple[str, ...]]
) -> None:
    for write in (write_coco, write_lines):
        assert [image.objects for image in read_annotations(write(tmp_path, objects))] == expected


spellings = st.lists(
    st.lists(
        st.sampled_from(["dog", "Dog ", "DOG", NFC, NFD, "cat", " cat", "hot dog", "hot  dog"]), max_size=5
    ),
    min_size=1,
    max_size=5,
)


@given(spellings)
def test_both_formats_give_the_same_images_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, objects: list[list[str]]
) -> None:
    folder = tmp_path_factory.mktemp("annotations")
    images = read_annotations(write_lines(folder, objects))
    assert read_annotations(write_coco(folder, objects)) == images
    turned = read_annotations(write_lines(folder, objects[::-1]))
    assert [image.objects for image in turned[::-1]] == [image.objects for image in images]
    lowered = [[name.lower() for name in image.objects] for image in images]
    assert all(len(set(own)) == len(own) for own in lowered)


def test_no_question_asks_for_a_second_spelling(tmp_path: Path) -> None:
    """With "dog " and "dog" as two objects, the absent one gave a question with the gold answer no."""
    objects = [["dog "], ["dog", "cat"], ["Cat", "dog"]]
    for n in range(3):
        save_image(tmp_path / "images" / f"{n}.jpg")
    file = write_coco(tmp_path, objects)
    prepared = prepare_poll(file, [tmp_path / "images"], tmp_path, per_image=1)
    rows = read_rows(prepared.folder / "random.parquet")
    assert [(row["question"], row["answer"]) for row in rows] == [
        ("Is there a dog in the image?", "yes"),
        ("Is there a cat in the image?", "no"),
    ]


@pytest.mark.parametrize("name", ["", " ", "\u200b", "\u00a0\t"])
def test_an_object_without_a_name_is_an_error_in_both_formats(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"lines\.jsonl, line 2: objects .* one is empty$"):
        read_annotations(write_lines(tmp_path, [["dog"], [name]]))
    with pytest.raises(DataError, match=r"instances\.json: the name of category 1 is empty$"):
        read_annotations(write_coco(tmp_path, [["dog"], [name]]))


def test_a_category_without_a_name_that_no_image_has_is_accepted(tmp_path: Path) -> None:
    file = write_coco(tmp_path, [["dog"]], categories=[{"id": 0, "name": "dog"}, {"id": 9, "name": ""}])
    assert read_annotations(file) == [AnnotatedImage("0.jpg", ("dog",))]


def test_what_pycocotools_reads_is_read_as_it_reads_it(tmp_path: Path) -> None:
    """Annotations of images that are not listed, numbers as floats, and keys that are not needed."""
    file = write_coco(tmp_path, [["dog", "cat"], ["cat"], []])
    content = json.loads(file.read_text())
    del content["images"][0]
    content["annotations"][2]["image_id"] = 1.0
    content["annotations"].append({"image_id": 1, "category_id": 0, "bbox": None, "iscrowd": 1})
    content["licenses"] = None
    for number, annotation in enumerate(content["annotations"]):
        annotation["id"] = number
    file.write_text(json.dumps(content))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(file)
    expected = [
        (
            image["file_name"],
            [coco.cats[note["category_id"]]["name"] for note in coco.loadAnns(coco.getAnnIds(image["id"]))],
        )
        for image in coco.loadImgs(coco.getImgIds())
    ]
    assert [(image.image, list(image.objects)) for image in read_annotations(file)] == expected
    assert expected == [("1.jpg", ["cat", "dog"]), ("2.jpg", [])]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [{"image_id": 0, "category_id": 7}]}, r"annotations\[0\]: no category has the id 7"),
        ({"annotations": [{"image_id": None, "category_id": 0}]}, r"annotations\[0\]: no image_id"),
        ({"annotations": [{"image_id": [1], "category_id": 0}]}, r"annotations\[0\]: image_id is \[1\], exp"),
        ({"annotations": [5]}, r"annotations\[0\]: expected a JSON object, found int"),
        ({"annotations": None}, "is not COCO's instances file: no list of annotations"),
        ({"categories": {}}, "is not COCO's instances file: no list of categories"),
        ({"categories": [{"id": 0, "name": None}]}, r"categories\[0\]: no name"),
        (
            {"categories": [{"id": 0, "name": "dog"}, {"id": 0, "name": "cat"}]},
            r"categories\[1\]: id 0 is 'dog' and 'cat'",
        ),
        (
            {"images": [{"id": 0, "file_name": "a.jpg"}, {"id": "0", "file_name": "b.jpg"}]},
            r"images\[1\]: id 0 is also that of a\.jpg",
        ),
        ({"images": [{"id": 0, "file_name": ""}]}, r"images\[0\]: file_name is empty"),
    ],
)
def test_the_error_for_a_bad_instances_file_names_the_record(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_annotations(write_coco(tmp_path, [["dog"]], **changes))


def test_a_list_of_records_is_read_as_lines_are(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps([{"image": 310196, "objects": ["Dog", "dog"]}], indent=1))
    assert read_annotations(tmp_path / "list.json") == [AnnotatedImage("310196", ("dog",))]


def test_two_names_of_one_image_are_an_error(tmp_path: Path) -> None:
    """Each name has objects of its own, so that an object of one would be absent under the other."""
    save_image(tmp_path / "images" / "000000000009.jpg")
    lines = [
        {"image": "000000000009.jpg", "objects": ["dog"]},
        {"image": "COCO_val2014_000000000009.jpg", "objects": ["cat"]},
    ]
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    with pytest.raises(DataError, match=r"lists one image twice: 000000000009\.jpg and COCO_val2014_0000"):
        prepare_poll(tmp_path / "lines.jsonl", [tmp_path / "images"], tmp_path, per_image=1)
