"""POPE's question files, prepared with a user's images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.images import save_image

from truthgate_eval.data.pope import prepare_pope
from truthgate_eval.data.store import MISSING_FILE, PROVENANCE_FILE, read_rows
from truthgate_eval.errors import DataError
from truthgate_eval.metrics.pope import SOURCES, SPLITS


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """POPE's nine files, two questions about each of two images."""
    folder = tmp_path / "questions"
    folder.mkdir()
    for source in SOURCES:
        for split in SPLITS:
            lines = [
                {
                    "question_id": n,
                    "image": f"COCO_val2014_00000000000{n % 2}.jpg",
                    "text": "?",
                    "label": label,
                }
                for n, label in enumerate(["yes", "no", "no", "yes"], start=1)
            ]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / f"{source}_pope_{split}.json").write_text(text)
    return folder


def test_pope_keeps_its_questions_and_gets_image_paths(questions: Path, tmp_path: Path) -> None:
    for number in range(2):
        save_image(tmp_path / "images" / "val2014" / f"COCO_val2014_00000000000{number}.jpg")
    prepared = prepare_pope(questions, [tmp_path / "images"], tmp_path)
    assert prepared.files == {f"{source}_{split}": 4 for source in SOURCES for split in SPLITS}
    rows = read_rows(tmp_path / "pope" / "gqa_popular.parquet")
    assert [(row["question_id"], row["answer"]) for row in rows] == [
        (1, "yes"),
        (2, "no"),
        (3, "no"),
        (4, "yes"),
    ]
    assert Path(rows[0]["image_path"]).name == rows[0]["image"] == "COCO_val2014_000000000001.jpg"
    assert not (tmp_path / "pope" / MISSING_FILE).exists()


def test_missing_images_are_an_error_with_their_number_and_names(questions: Path, tmp_path: Path) -> None:
    save_image(tmp_path / "images" / "COCO_val2014_000000000001.jpg")
    with pytest.raises(DataError, match=r"1 images are not in .*: COCO_val2014_000000000000\.jpg .*--allow"):
        prepare_pope(questions, [tmp_path / "images"], tmp_path)
    assert (tmp_path / "pope" / MISSING_FILE).read_text() == "COCO_val2014_000000000000.jpg\n"
    assert not list((tmp_path / "pope").glob("*.parquet"))


def test_questions_left_out_for_missing_images_are_counted_for_each_file(
    questions: Path, tmp_path: Path
) -> None:
    save_image(tmp_path / "images" / "COCO_val2014_000000000001.jpg")
    prepared = prepare_pope(questions, [tmp_path / "images"], tmp_path, sources=["coco"], allow_missing=True)
    assert prepared.missing == ["COCO_val2014_000000000000.jpg"]
    assert prepared.notes == [f"coco_{split}: 2 of 4 questions left out" for split in SPLITS]
    assert (prepared.folder / MISSING_FILE).read_text() == "COCO_val2014_000000000000.jpg\n"
    assert json.loads((prepared.folder / PROVENANCE_FILE).read_text())["missing_pictures"] == 1


def test_no_image_at_all_is_an_error_even_if_missing_images_are_allowed(
    questions: Path, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="none of them was found"):
        prepare_pope(questions, [tmp_path / "images"], tmp_path, allow_missing=True)


def test_the_real_pope_lists_the_missing_images(shared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^1489 images are not in .* and 1484 more"):
        prepare_pope(shared_data / "pope", [shared_data / "coco128" / "images"], tmp_path)
    assert len((tmp_path / "pope" / MISSING_FILE).read_text().splitlines()) == 1489


def test_the_real_pope_is_prepared_with_images_of_those_names(shared_data: Path, tmp_path: Path) -> None:
    content = save_image(tmp_path / "one.jpg")
    (tmp_path / "images").mkdir()
    for line in (shared_data / "pope" / "coco_pope_random.json").read_text().splitlines():
        (tmp_path / "images" / json.loads(line)["image"]).write_bytes(content)
    prepared = prepare_pope(shared_data / "pope", [tmp_path / "images"], tmp_path, sources=["coco"])
    assert prepared.files == {f"coco_{split}": 3000 for split in SPLITS}
    answers = [row["answer"] for row in read_rows(prepared.folder / "coco_popular.parquet")]
    assert answers.count("yes") == 1500


def write_questions(folder: Path, content: str) -> Path:
    """The three files of COCO's questions, all with this content."""
    folder.mkdir(exist_ok=True)
    for split in SPLITS:
        (folder / f"coco_pope_{split}.json").write_text(content, encoding="utf-8")
    return folder


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, 2], [1, 2]),
        (["1", 2], [1, 2]),
        (["coco-1", 2], ["coco-1", "2"]),
        (["007", "7"], ["007", "7"]),
        ([3, 3], [3, 3]),
        ([1.0, 2], [1, 2]),
    ],
)
def test_question_ids_can_be_texts_and_equal(
    tmp_path: Path, ids: list[object], expected: list[object], as_list: bool
) -> None:
    """lmms-eval's data sets have texts there."""
    save_image(tmp_path / "images" / "a.jpg")
    records = [{"question_id": n, "image": "a.jpg", "text": "Is it\u2028so?", "label": "Yes "} for n in ids]
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    write_questions(tmp_path / "questions", "\ufeff" + (json.dumps(records) if as_list else lines))
    prepared = prepare_pope(tmp_path / "questions", [tmp_path / "images"], tmp_path, sources=["coco"])
    rows = read_rows(prepared.folder / "coco_random.parquet")
    assert [row["question_id"] for row in rows] == expected
    assert {(row["question"], row["answer"]) for row in rows} == {("Is it\u2028so?", "yes")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_id": None}, "line 2: no question_id$"),
        ({"question_id": 1.5}, "line 2: question_id 1.5, expected a whole number or a text$"),
        ({"question_id": []}, r"line 2: question_id is \[\], expected a text$"),
        ({"text": None}, "line 2: no text$"),
        ({"text": " "}, "line 2: text is empty$"),
        ({"image": {"id": 1}}, "line 2: image is .*, expected a text$"),
        ({"image": ""}, "line 2: image is empty$"),
        ({"label": "maybe"}, "line 2: label 'maybe', expected yes or no$"),
        ({"label": True}, "line 2: label True, expected yes or no$"),
        ({"label": ["yes"]}, r"line 2: label \['yes'\], expected yes or no$"),
    ],
)
def test_the_error_for_a_bad_question_names_file_and_line(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    save_image(tmp_path / "a.jpg")
    good = {"question_id": 1, "image": "a.jpg", "text": "Is it?", "label": "yes"}
    write_questions(tmp_path / "questions", f"{json.dumps(good)}\n{json.dumps({**good, **change})}\n")
    with pytest.raises(DataError, match=rf"coco_pope_random\.json, {message}"):
        prepare_pope(tmp_path / "questions", [tmp_path], tmp_path / "out", sources=["coco"])
