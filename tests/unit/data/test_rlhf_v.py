"""RLHF-V's release, converted to a prepared data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from helpers.images import save_image

from truthgate_eval.data.rlhf_v import prepare_rlhf_v
from truthgate_eval.data.store import read_rows
from truthgate_eval.errors import DataError


def rlhf_v_record(number: int, question_type: str, image: bytes) -> dict[str, Any]:
    text = {"question": f"What is {number}?", "chosen": "A cat.", "rejected": "A dog."}
    return {
        "ds_name": "RLHF-V", "image": {"bytes": image, "path": "same.jpg"}, "text": json.dumps(text),
        "origin_dataset": "COCO", "origin_split": json.dumps({"model": "m", "type": question_type}),
        "idx": number, "image_path": "same.jpg",
    }  # fmt: skip


def test_question_answering_samples_are_kept_with_their_images(tmp_path: Path) -> None:
    content = save_image(tmp_path / "one.jpg")
    types = ["question_answering", "detailed_description", "question answering"]
    records = [rlhf_v_record(number, question_type, content) for number, question_type in enumerate(types)]
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


def test_an_unknown_question_type_is_an_error(tmp_path: Path) -> None:
    records = [rlhf_v_record(0, "poem", save_image(tmp_path / "one.jpg"))]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "release.parquet")
    with pytest.raises(DataError, match=r"record 0: origin_split .*poem"):
        prepare_rlhf_v(tmp_path, parquet=tmp_path / "release.parquet")
    assert not (tmp_path / "rlhf_v" / "qa.parquet").exists()


@pytest.mark.parametrize(
    ("reason", "expected"), [("no route\nto the hub", "no route"), ("", "ConnectionError")]
)
def test_a_hub_that_cannot_be_reached_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, expected: str
) -> None:
    def no_network(*args: object, **options: object) -> None:
        raise ConnectionError(reason)

    monkeypatch.setattr(datasets, "load_dataset", no_network)
    with pytest.raises(DataError, match=rf"from the hub \({expected}\): give --parquet FILE$"):
        prepare_rlhf_v(tmp_path)
