from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from typer.testing import CliRunner

from truthgate_eval.cli.data import data_app
from truthgate_eval.data import phd
from truthgate_eval.data.author_sequences import read_sequences
from truthgate_eval.data.halueval import documents, prepare_halueval
from truthgate_eval.data.images import ImageFolders, open_image
from truthgate_eval.data.phd import prepare_phd
from truthgate_eval.data.pope import prepare_pope
from truthgate_eval.data.rlhf_v import prepare_rlhf_v
from truthgate_eval.data.store import MISSING, PROVENANCE, prepared_file, read_rows, write_dataset
from truthgate_eval.errors import DataError
from truthgate_eval.metrics.pope import SOURCES, SPLITS


def draw(path: Path) -> bytes:
    """A small picture, and its content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (200, 30, 30)).save(path)
    return path.read_bytes()


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """POPE's nine files, two questions about each of two pictures."""
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


def test_pope_keeps_its_questions_and_names_their_pictures(questions: Path, tmp_path: Path) -> None:
    for number in range(2):
        draw(tmp_path / "images" / "val2014" / f"COCO_val2014_00000000000{number}.jpg")
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
    assert not (tmp_path / "pope" / MISSING).exists()


def test_missing_pictures_are_refused_with_their_number_and_names(questions: Path, tmp_path: Path) -> None:
    draw(tmp_path / "images" / "COCO_val2014_000000000001.jpg")
    with pytest.raises(
        DataError, match=r"1 pictures are not in .*: COCO_val2014_000000000000\.jpg .*--allow"
    ):
        prepare_pope(questions, [tmp_path / "images"], tmp_path)
    assert (tmp_path / "pope" / MISSING).read_text() == "COCO_val2014_000000000000.jpg\n"
    assert not list((tmp_path / "pope").glob("*.parquet"))


def test_allowed_missing_pictures_are_counted_for_each_file(questions: Path, tmp_path: Path) -> None:
    draw(tmp_path / "images" / "COCO_val2014_000000000001.jpg")
    prepared = prepare_pope(questions, [tmp_path / "images"], tmp_path, sources=["coco"], allow_missing=True)
    assert prepared.missing == ["COCO_val2014_000000000000.jpg"]
    assert prepared.notes == [f"coco_{split}: 2 of 4 questions left out" for split in SPLITS]
    assert (prepared.folder / MISSING).read_text() == "COCO_val2014_000000000000.jpg\n"
    assert json.loads((prepared.folder / PROVENANCE).read_text())["missing_pictures"] == 1


def test_all_pictures_missing_is_refused_even_if_missing_ones_are_allowed(
    questions: Path, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="none of them was found"):
        prepare_pope(questions, [tmp_path / "images"], tmp_path, allow_missing=True)


def test_real_pope_names_the_pictures_that_are_not_there(shared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^1489 pictures are not in .* and 1484 more"):
        prepare_pope(shared_data / "pope", [shared_data / "coco128" / "images"], tmp_path)
    assert len((tmp_path / "pope" / MISSING).read_text().splitlines()) == 1489


def test_real_pope_with_pictures_of_those_names(shared_data: Path, tmp_path: Path) -> None:
    content = draw(tmp_path / "one.jpg")
    (tmp_path / "images").mkdir()
    for line in (shared_data / "pope" / "coco_pope_random.json").read_text().splitlines():
        (tmp_path / "images" / json.loads(line)["image"]).write_bytes(content)
    prepared = prepare_pope(shared_data / "pope", [tmp_path / "images"], tmp_path, sources=["coco"])
    assert prepared.files == {f"coco_{split}": 3000 for split in SPLITS}
    answers = [row["answer"] for row in read_rows(prepared.folder / "coco_popular.parquet")]
    assert answers.count("yes") == 1500


def test_a_coco_picture_is_found_under_the_names_of_all_releases(tmp_path: Path) -> None:
    draw(tmp_path / "000000310196.jpg")
    folders = ImageFolders([tmp_path])
    for name in ("COCO_val2014_000000310196.jpg", "000000310196.jpg", "310196", "train/000000310196.jpg"):
        assert folders.find(name) == tmp_path / "000000310196.jpg", name
    assert folders.find("310197") is None
    assert folders.find("2310196.jpg") is None


@pytest.mark.parametrize("content", [b"", b"not a picture"])
def test_a_broken_picture_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read the picture .*broken\.jpg"):
        open_image(tmp_path / "broken.jpg")
    with pytest.raises(DataError, match=r"no picture at .*gone\.jpg"):
        open_image(tmp_path / "gone.jpg")


def test_phd_asks_about_the_picture_and_not_about_the_context(tmp_path: Path) -> None:
    draw(tmp_path / "images" / "COCO_train2014_000000500877.jpg")
    record = {
        "image_id": "000000500877", "task": "object", "yes_question": "Is there a cat?",
        "no_question": "Is there a dog?", "hitem": "dog", "gt": "cat", "subject": "",
        "context": {"iac": "", "icc": "A dog, no cat."},
    }  # fmt: skip
    (tmp_path / "data.json").write_text(json.dumps([record]))
    prepare_phd(tmp_path / "data.json", [tmp_path / "images"], tmp_path / "out")
    rows = read_rows(tmp_path / "out" / "phd" / "image.parquet")
    truths = [(row["question"], row["choices"][row["target"]]) for row in rows]
    assert truths == [("Is there a cat?", "yes"), ("Is there a dog?", "no")]
    text = phd.documents(str(tmp_path / "out" / "phd" / "data.json"))
    assert [doc["target"] for doc in text] == [1 - row["target"] for row in rows]


def rlhf_v_record(number: int, kind: str, image: bytes) -> dict[str, Any]:
    text = {"question": f"What is {number}?", "chosen": "A cat.", "rejected": "A dog."}
    return {
        "ds_name": "RLHF-V", "image": {"bytes": image, "path": "same.jpg"}, "text": json.dumps(text),
        "origin_dataset": "COCO", "origin_split": json.dumps({"model": "m", "type": kind}),
        "idx": number, "image_path": "same.jpg",
    }  # fmt: skip


def test_rlhf_v_keeps_question_answering_and_its_pictures(tmp_path: Path) -> None:
    content = draw(tmp_path / "one.jpg")
    kinds = ["question_answering", "detailed_description", "question answering"]
    records = [rlhf_v_record(number, kind, content) for number, kind in enumerate(kinds)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "release.parquet")
    prepared = prepare_rlhf_v(tmp_path, parquet=tmp_path / "release.parquet")
    rows = read_rows(tmp_path / "rlhf_v" / "qa.parquet")
    assert [(row["row"], row["choices"], row["target"]) for row in rows] == [
        (0, ["A cat.", "A dog."], 0),
        (2, ["A cat.", "A dog."], 0),
    ]
    assert all(Path(row["image_path"]).read_bytes() == content for row in rows)
    assert prepared.notes == [
        "2 records of type question_answering",
        "1 records of type detailed_description",
    ]


def test_rlhf_v_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    records = [rlhf_v_record(0, "poem", draw(tmp_path / "one.jpg"))]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "release.parquet")
    with pytest.raises(DataError, match=r"record 0: origin_split .*poem"):
        prepare_rlhf_v(tmp_path, parquet=tmp_path / "release.parquet")
    assert not (tmp_path / "rlhf_v" / "qa.parquet").exists()


def test_the_authors_sequences_are_balanced_and_complete(shared_data: Path) -> None:
    folder = shared_data / "truthprobe" / "probing"
    rows = read_sequences(folder / "phd_icc_images_10k.jsonl")
    told = [(row["choices"][0], bool(row["target"])) for row in rows]
    assert {pair: told.count(pair) for pair in set(told)} == {
        (answer, truthful): 2500 for answer in ("yes", "no") for truthful in (True, False)
    }
    assert len(read_sequences(folder / "rlhf_v_qa_2726.jsonl")) == 2726


def test_the_authors_sequences_find_pictures_by_name_or_by_coco_number(tmp_path: Path) -> None:
    draw(tmp_path / "images" / "jpg_1.jpg")
    draw(tmp_path / "images" / "000000000025.jpg")
    lines = [
        {
            "question_id": n,
            "question": "?",
            "answer": "yes",
            "label": "gold",
            "image_path": path,
            "image_id": number,
        }
        for n, (path, number) in enumerate([("jpg_1.jpg", "000000000009"), ("jpg_2.jpg", "000000000025")])
    ]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = read_sequences(tmp_path / "lines.jsonl", ImageFolders([tmp_path / "images"]))
    assert [row["image"] for row in rows] == ["jpg_1.jpg", "000000000025"]


def test_halueval_is_found_by_its_tasks_after_preparation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"knowledge": "k", "question": "q", "right_answer": "r", "hallucinated_answer": "h"}
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "qa_data.json").write_text(json.dumps(record) + "\n")
    prepared = prepare_halueval(tmp_path / "release", tmp_path / "data")
    assert prepared.files == {"qa_data": 1}
    assert len(prepared.notes) == 2
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path / "data"))
    assert [document["question"] for document in documents("qa")] == ["q"]


def test_a_failed_preparation_leaves_the_older_data_set_alone(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", {"a": [{"x": 1}]}, source={})
    with pytest.raises(pyarrow.ArrowException):
        write_dataset(tmp_path / "set", {"a": [{"x": 2}], "b": [{"x": 1}, {"x": "one"}]}, source={})
    assert read_rows(tmp_path / "set" / "a.parquet") == [{"x": 1}]
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["a.parquet", PROVENANCE]


def test_a_data_set_that_is_not_there_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pope/coco_random is not prepared.*truthgate data pope"):
        prepared_file("pope/coco_random", data=tmp_path)


def test_the_command_line_makes_a_poll_and_says_how_to_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path / "data"))
    lines = [{"image": f"{n}.png", "objects": [f"thing {n}", "dog"]} for n in range(3)]
    for line in lines:
        draw(tmp_path / "images" / str(line["image"]))
    (tmp_path / "annotations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["--images", str(tmp_path / "images"), "--annotations", str(tmp_path / "annotations.jsonl")]
    result = CliRunner().invoke(data_app, ["poll", *arguments, "--min-objects", "2"])
    assert result.exit_code == 0, result.output
    assert "poll/random: 12 rows" in result.output
    assert "use with: lmms_eval --tasks poll" in result.output
    assert (tmp_path / "data" / "poll" / "adversarial.parquet").is_file()
