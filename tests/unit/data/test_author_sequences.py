"""The probing sequences that the TruthProbe authors publish."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.images import save_image

from truthgate_eval.data.author_sequences import read_sequences
from truthgate_eval.data.images import ImageFolders


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
