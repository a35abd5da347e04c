"""PhD: questions with a text context, and with an image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.images import save_image

from truthgate_eval.data import phd
from truthgate_eval.data.store import read_rows
from truthgate_eval.errors import DataError

RECORD = {
    "image_id": "000000000001", "task": "attribute", "yes_question": "Is the bus red?",
    "no_question": "Is the bus blue?", "context": {"iac": "x", "icc": "The bus is blue."},
}  # fmt: skip


def test_labels_are_exchanged_under_the_contradicting_context(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([RECORD]))
    first, second = phd.documents(str(path))
    # The image has a red bus. The context says that it is blue, and the context is the knowledge.
    assert (first["question"], first["choices"][first["target"]]) == ("Is the bus red?", "no")
    assert (second["question"], second["choices"][second["target"]]) == ("Is the bus blue?", "yes")
    assert [first["row"], second["row"]] == [0, 1] and first["context"] == "The bus is blue."
    assert (first["image_id"], first["kind"]) == ("000000000001", "attribute")


def test_records_without_a_context_are_skipped_and_keep_their_row_numbers(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    ccs = {"image_id": "0", "task": "object", "yes_question": "a", "no_question": "b", "ccs_description": "c"}
    path.write_text(json.dumps([ccs, RECORD, ccs]))
    assert [doc["row"] for doc in phd.documents(str(path))] == [2, 3]
    path.write_text(json.dumps([ccs]))
    with pytest.raises(DataError, match="no record has a context"):
        phd.documents(str(path))


def test_a_missing_or_wrong_file_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"PhD's data\.json is not at"):
        phd.documents()
    for text, message in (
        (b"{}", "expected a list of records, found dict"), (b"[]", "found an empty one"), (b"[", "not JSON"),
        (b"\xff\xfe", "not JSON"), (b"[{}]", "record 0: no image_id"), (b"[5]", "record 0: no image_id"),
        (json.dumps([{**RECORD, "no_question": None}]).encode(), "record 0: no no_question"),
        (json.dumps([{**RECORD, "context": {"iac": "x"}}]).encode(), r"record 0: no context\.icc"),
    ):  # fmt: skip
        (tmp_path / "other.json").write_bytes(text)
        with pytest.raises(DataError, match=message):
            phd.documents(str(tmp_path / "other.json"))


def test_image_questions_have_the_answers_that_the_image_supports(tmp_path: Path) -> None:
    save_image(tmp_path / "images" / "COCO_train2014_000000500877.jpg")
    record = {
        "image_id": "000000500877", "task": "object", "yes_question": "Is there a cat?",
        "no_question": "Is there a dog?", "hitem": "dog", "gt": "cat", "subject": "",
        "context": {"iac": "", "icc": "A dog, no cat."},
    }  # fmt: skip
    (tmp_path / "data.json").write_text(json.dumps([record]))
    phd.prepare_phd(tmp_path / "data.json", [tmp_path / "images"], tmp_path / "out")
    rows = read_rows(tmp_path / "out" / "phd" / "image.parquet")
    truths = [(row["question"], row["choices"][row["target"]]) for row in rows]
    assert truths == [("Is there a cat?", "yes"), ("Is there a dog?", "no")]
    text = phd.documents(str(tmp_path / "out" / "phd" / "data.json"))
    assert [doc["target"] for doc in text] == [1 - row["target"] for row in rows]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": [1]}, r"image_id is \[1\], expected a text"),
        ({"image_id": ""}, "image_id is empty"),
        ({"no_question": 5.5, "yes_question": ["a"]}, r"yes_question is \['a'\], expected a text"),
        ({"no_question": ""}, "no_question is empty"),
        ({"task": ["object"]}, r"task is \['object'\], expected a text"),
        ({"context": {"icc": ["a"]}}, r"context\.icc is \['a'\], expected a text"),
        ({"context": {"icc": " "}}, r"context\.icc is empty"),
    ],
)
def test_a_wrong_type_is_an_error_with_file_and_record(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    (tmp_path / "data.json").write_text(json.dumps([RECORD, {**RECORD, **change}]))
    with pytest.raises(DataError, match=rf"data\.json, record 1: {message}"):
        phd.documents(str(tmp_path / "data.json"))


def test_a_null_task_is_none_and_a_number_an_image(tmp_path: Path) -> None:
    content = json.dumps([{**RECORD, "task": None, "image_id": 310196.0}])
    (tmp_path / "data.json").write_text("\ufeff" + content, encoding="utf-8")
    assert [(doc["kind"], doc["image_id"]) for doc in phd.documents(str(tmp_path / "data.json"))] == [
        ("", "310196")
    ] * 2


def test_deep_json_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("[" * 200_000)
    with pytest.raises(DataError, match=r"data\.json is JSON that is nested too deeply to be read$"):
        phd.documents(str(tmp_path / "data.json"))
