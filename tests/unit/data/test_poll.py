"""Polls: POPE's sampling rule on annotated images, prepared as a data set."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from truthgate_eval.data.annotations import AnnotatedImage, read_annotations
from truthgate_eval.data.poll import make_poll, prepare_poll, question_text
from truthgate_eval.data.store import read_rows
from truthgate_eval.errors import DataError
from truthgate_eval.metrics.pope import SPLITS

NAMES = [f"thing {letter}" for letter in "abcdefghij"]
collections = st.lists(
    st.lists(st.sampled_from(NAMES), unique=True, max_size=8).map(tuple), min_size=1, max_size=12
).map(lambda object_lists: [AnnotatedImage(f"{n}.jpg", objects) for n, objects in enumerate(object_lists)])


def poll_or_none(images: list[AnnotatedImage], **settings: Any) -> Any:
    try:
        return make_poll(images, **settings)
    except DataError:
        return None


@given(collections, st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))
def test_every_split_is_balanced_true_and_without_duplicates(
    images: list[AnnotatedImage], per_image: int, min_objects: int, seed: int
) -> None:
    poll = poll_or_none(images, per_image=per_image, min_objects=min_objects, seed=seed)
    if poll is None:
        return
    present = {image.image: set(image.objects) for image in images}
    for questions in poll.splits.values():
        answers = Counter(question["answer"] for question in questions)
        assert answers["yes"] == answers["no"] == len(questions) / 2
        image_and_object = [(question["image"], question["object"]) for question in questions]
        assert len(set(image_and_object)) == len(image_and_object)
        assert [question["question_id"] for question in questions] == list(range(1, len(questions) + 1))
        for question in questions:
            assert (question["object"] in present[question["image"]]) == (question["answer"] == "yes")
        for image in poll.images:
            both = Counter(q["answer"] for q in questions if q["image"] == image)
            assert 0 < both["yes"] == both["no"] <= per_image


@given(collections, st.integers(0, 3))
def test_the_yes_questions_are_the_same_in_all_splits(images: list[AnnotatedImage], seed: int) -> None:
    poll = poll_or_none(images, min_objects=1, seed=seed)
    if poll is None:
        return
    yes = [
        [(q["image"], q["object"]) for q in questions if q["answer"] == "yes"]
        for questions in poll.splits.values()
    ]
    assert yes[0] == yes[1] == yes[2]


@given(collections, st.integers(0, 3))
def test_the_questions_of_an_image_do_not_depend_on_the_order_of_images(
    images: list[AnnotatedImage], seed: int
) -> None:
    def questions(order: list[AnnotatedImage]) -> Any:
        poll = poll_or_none(order, min_objects=1, seed=seed)
        return poll and {
            split: sorted((q["image"], q["object"], q["answer"]) for q in rows)
            for split, rows in poll.splits.items()
        }

    assert questions(images) == questions(images[::-1])


def test_another_seed_gives_other_questions() -> None:
    images = [AnnotatedImage(f"{index}.jpg", tuple(NAMES[index : index + 4])) for index in range(6)]
    questions = [make_poll(images, seed=seed).splits["random"] for seed in range(4)]
    assert any(one != questions[0] for one in questions[1:])


@given(collections)
def test_every_image_is_used_or_reported_as_left_out(images: list[AnnotatedImage]) -> None:
    poll = poll_or_none(images)
    if poll is None:
        return
    without = {*poll.unannotated, *poll.too_few_objects, *poll.incomplete}
    assert {image.image for image in images} == {*poll.images, *without}
    assert not set(poll.images) & {*poll.unannotated, *poll.too_few_objects}


def test_popular_asks_about_the_most_frequent_absent_objects() -> None:
    images = [
        AnnotatedImage("0", ("cat",)),
        *[AnnotatedImage(f"dog {n}", ("dog",)) for n in range(5)],
        *[AnnotatedImage(f"car {n}", ("car",)) for n in range(3)],
        AnnotatedImage("bus", ("bus",)),
    ]
    questions = make_poll(images, per_image=1).splits["popular"]
    assert [q["object"] for q in questions if q["image"] == "0"] == ["cat", "dog"]
    assert [q["object"] for q in questions if q["image"] == "dog 0"] == ["dog", "car"]


def test_adversarial_asks_about_the_objects_that_occur_with_the_present_ones() -> None:
    images = [
        AnnotatedImage("target", ("fork",)),
        *[AnnotatedImage(f"pair {n}", ("fork", "knife")) for n in range(2)],
        *[AnnotatedImage(f"dog {n}", ("dog",)) for n in range(9)],
    ]
    poll = make_poll(images, per_image=1)
    no = {
        split: next(q["object"] for q in rows if q["image"] == "target" and q["answer"] == "no")
        for split, rows in poll.splits.items()
    }
    assert no["adversarial"] == "knife"
    assert no["popular"] == "dog"


def test_an_object_that_is_always_alone_still_gets_a_no_question() -> None:
    poll = make_poll([AnnotatedImage("0", ("cat",)), AnnotatedImage("1", ("dog",))], per_image=1)
    assert [q["object"] for q in poll.splits["adversarial"]] == ["cat", "dog", "dog", "cat"]


def test_a_limit_is_the_number_of_images() -> None:
    images = [AnnotatedImage(f"{index}.jpg", tuple(NAMES[index : index + 4])) for index in range(6)]
    assert len(make_poll(images, limit=2).images) == 2


def test_the_error_for_no_questions_counts_the_images() -> None:
    with pytest.raises(DataError, match=r"of 2 images, 1 are annotated and 0 have at least 3 objects"):
        make_poll([AnnotatedImage("0", ()), AnnotatedImage("1", ("cat",))])


@pytest.mark.parametrize(
    ("name", "article"),
    [
        ("apple", "an"), ("umbrella", "an"), ("oven", "an"), ("hourglass", "an"), ("x-ray", "an"),
        ("horse", "a"), ("hot dog", "a"), ("unicycle", "a"), ("utensil", "a"), ("uniform", "a"),
        ("one-way sign", "a"), ("uninflated ball", "an"), ("Eagle", "an"), ("bench", "a"),
    ],
)  # fmt: skip
def test_the_article_depends_on_the_sound(name: str, article: str) -> None:
    assert question_text(name) == f"Is there {article} {name} in the image?"


def test_coco_instances_and_json_lines_give_the_same_images(tmp_path: Path) -> None:
    coco = {
        "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}],
        "annotations": [{"image_id": 1, "category_id": category} for category in (7, 3, 7)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(coco))
    lines = [{"image": "1.jpg", "objects": ["dog", "cat"]}, {"image": "2.jpg", "objects": []}]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    expected = [AnnotatedImage("1.jpg", ("dog", "cat")), AnnotatedImage("2.jpg", ())]
    assert read_annotations(tmp_path / "instances.json") == expected
    assert read_annotations(tmp_path / "lines.jsonl") == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no images"),
        ("nonsense", "line 1 is cut off or not JSON: Expecting value$"),
        ('{"image": "a"}', "line 1: no objects"),
        ('{"image": "a", "objects": "cat"}', "objects is not a list of names"),
        ('{"image": "a", "objects": []}\n{"image": "a", "objects": []}', "more than once, such as a"),
        ('{"images": [{"id": 1}]}', "is not COCO's instances file"),
    ],
)
def test_the_error_for_bad_annotations_has_the_reason(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "annotations"
    file.write_text(content)
    with pytest.raises(DataError, match=message):
        read_annotations(file)


def test_a_poll_on_real_photographs(shared_data: Path, tmp_path: Path) -> None:
    coco = shared_data / "coco128"
    annotations = coco / "annotations.jsonl"
    prepared = prepare_poll(annotations, [coco / "images"], tmp_path, seed=1)
    images = [image for image in read_annotations(annotations) if len(image.objects) >= 3]
    assert prepared.files == dict.fromkeys(("random", "popular", "adversarial"), 6 * len(images))
    assert not prepared.missing
    rows = read_rows(tmp_path / "poll" / "adversarial.parquet")
    assert all(Path(row["image_path"]).is_file() for row in rows)
    again = prepare_poll(annotations, [coco / "images"], tmp_path / "again", seed=1)
    assert read_rows(again.folder / "adversarial.parquet") == rows


def test_images_set_aside_for_probing_are_in_no_split(tmp_path: Path) -> None:
    lines = []
    for n in range(10):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{n}.png")
        lines.append(json.dumps({"image": f"{n}.png", "objects": ["dog", "cat", f"thing {n}"]}))
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    whole = prepare_poll(tmp_path / "a.jsonl", [tmp_path], tmp_path / "whole")
    prepared = prepare_poll(tmp_path / "a.jsonl", [tmp_path], tmp_path / "parted", probe_share=0.3)
    rows = {name: read_rows(prepared.folder / f"{name}.parquet") for name in prepared.files}
    probed = {row["image"] for row in rows["probe"]}
    assert len(probed) == 3 and prepared.files == {**dict.fromkeys(SPLITS, 42), "probe": 18}
    for split in SPLITS:
        kept = [row for row in read_rows(whole.folder / f"{split}.parquet") if row["image"] not in probed]
        assert rows[split] == kept
    prepare_poll(tmp_path / "a.jsonl", [tmp_path], tmp_path / "parted")  # without a share, none is left over
    assert not (prepared.folder / "probe.parquet").exists()
    with pytest.raises(DataError, match="leaves none for probing"):
        prepare_poll(tmp_path / "a.jsonl", [tmp_path], tmp_path / "parted", probe_share=0.01)
    with pytest.raises(DataError, match="expected a share from 0 to below 1"):
        prepare_poll(tmp_path / "a.jsonl", [tmp_path], tmp_path / "parted", probe_share=1)
