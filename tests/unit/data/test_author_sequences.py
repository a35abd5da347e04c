"""The probing sequences that the TruthProbe authors publish."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.images import save_image

from truthgate_eval.data.author_sequences import read_sequences
from truthgate_eval.data.images import ImageFolders
from truthgate_eval.errors import DataError


def test_the_authors_sequences_are_balanced_and_complete(shared_data: Path) -> None:
    folder = shared_data / "truthprobe" / "probing"
    rows = read_sequences(folder / "phd_icc_images_10k.jsonl")
    answers = [(row["choices"][0], bool(row["target"])) for row in rows]
    assert {pair: answers.count(pair) for pair in set(answers)} == {
        (answer, truthful): 2500 for answer in ("yes", "no") for truthful in (True, False)
    }
    assert len(read_sequences(folder / "rlhf_v_qa_2726.jsonl")) == 2726


def test_the_authors_sequences_find_images_by_name_or_by_coco_number(tmp_path: Path) -> None:
    save_image(tmp_path / "images" / "jpg_1.jpg")
    save_image(tmp_path / "images" / "000000000025.jpg")
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


SEQUENCE = {"question_id": 1, "question": "?", "answer": "yes", "label": "gold", "image_path": "a.jpg"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_id": None}, "no question_id$"),
        ({"question_id": {}}, r"question_id is \{\}, expected a text$"),
        ({"answer": None}, "no answer$"),
        ({"answer": ["yes"]}, r"answer is \['yes'\], expected a text$"),
        ({"question": True}, "question is True, expected a text$"),
        ({"label": "true"}, "label 'true', expected gold or hallucinated$"),
        ({"label": 1}, "label 1, expected gold or hallucinated$"),
        ({"image_path": None}, "no image_path$"),
        ({"image_path": ""}, "image_path is empty$"),
        ({"image_path": ["a.jpg"]}, r"image_path is \['a.jpg'\], expected a text$"),
    ],
)
def test_the_error_for_a_bad_sequence_names_file_and_line(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    lines = [SEQUENCE, {**SEQUENCE, **change}]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=rf"lines\.jsonl, line 2: {message}"):
        read_sequences(tmp_path / "lines.jsonl")


def test_an_image_can_have_its_number_alone_and_an_id_can_be_a_text(tmp_path: Path) -> None:
    lines = [{**SEQUENCE, "question_id": "a", "image_path": None, "image_id": 25}, SEQUENCE, SEQUENCE]
    (tmp_path / "list.json").write_text(json.dumps(lines))
    rows = read_sequences(tmp_path / "list.json")
    assert [(row["row"], row["question_id"], row["image"]) for row in rows] == [
        (0, "a", "25"),
        (1, "1", "a.jpg"),
        (2, "1", "a.jpg"),
    ]
