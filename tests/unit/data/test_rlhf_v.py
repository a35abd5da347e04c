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


def write_release(folder: Path, *records: dict[str, Any]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(records)), folder / "release.parquet")
    return folder / "release.parquet"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"idx": None}, "no idx$"),
        ({"idx": "first"}, "idx 'first', expected a whole number$"),
        ({"idx": 1.5}, "idx 1.5, expected a whole number or a text$"),
        ({"text": None}, "no text$"),
        ({"text": "{"}, "text is cut off or not JSON: "),
        ({"text": "[" * 200_000}, "text is JSON that is nested too deeply to be read$"),
        ({"text": "5"}, "text: expected a JSON object, found int$"),
        ({"text": '{"question": "?"}'}, "text: no chosen, rejected$"),
        ({"text": '{"question": "?", "chosen": [1], "rejected": "a"}'}, r"text: chosen is \[1\], exp"),
        ({"image": None}, "its image is empty$"),
        ({"image": {"bytes": "text", "path": "a.jpg"}}, "its image is empty$"),
        ({"origin_split": None}, "origin_split None, expected question answering or detailed"),
        ({"origin_split": 5}, "origin_split 5, expected question answering or detailed"),
        ({"origin_split": "[" * 200_000}, r"origin_split '\[\[.*, expected question answering"),
        (
            {"origin_split": '{"type": ["question_answering"]}'},
            "origin_split .*, expected question answering",
        ),
    ],
)
def test_the_error_for_a_bad_record_names_it(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    record = rlhf_v_record(3, "question_answering", save_image(tmp_path / "one.jpg"))
    release = write_release(tmp_path, {**record, **change})
    with pytest.raises(DataError, match=rf"release\.parquet, record 0: {message}") as caught:
        prepare_rlhf_v(tmp_path, parquet=release)
    assert len(str(caught.value)) < 500
    assert not (tmp_path / "rlhf_v" / "qa.parquet").exists()


def test_columns_can_be_objects_and_the_index_a_text(tmp_path: Path) -> None:
    """`datasets` writes JSON objects as columns of several fields."""
    record = rlhf_v_record(0, "question_answering", save_image(tmp_path / "one.jpg"))
    objects = {name: json.loads(record[name]) for name in ("text", "origin_split")}
    prepare_rlhf_v(tmp_path / "plain", parquet=write_release(tmp_path, record))
    prepare_rlhf_v(tmp_path / "objects", parquet=write_release(tmp_path, {**record, **objects, "idx": "0"}))
    plain, other = (read_rows(tmp_path / name / "rlhf_v" / "qa.parquet") for name in ("plain", "objects"))
    assert [{**row, "image_path": ""} for row in plain] == [{**row, "image_path": ""} for row in other]


def test_two_records_with_one_index_are_an_error(tmp_path: Path) -> None:
    """The second one's image took the place of the first one's."""
    content = save_image(tmp_path / "one.jpg")
    records = [rlhf_v_record(number, "question_answering", content) for number in (4, 5, 4)]
    with pytest.raises(DataError, match=r"record 2: idx 4 is also that of .*release\.parquet, record 0$"):
        prepare_rlhf_v(tmp_path, parquet=write_release(tmp_path, *records))


@pytest.mark.parametrize(
    ("path", "name"),
    [("a.PNG", "7.PNG"), (None, "7.jpg"), ("a.b\0", "7.jpg"), ("a." + "x" * 300, "7.jpg"), (".jpg", "7.jpg")],
)
def test_an_image_gets_the_suffix_of_its_name_where_that_is_one(
    tmp_path: Path, path: str | None, name: str
) -> None:
    record = {**rlhf_v_record(7, "question_answering", save_image(tmp_path / "one.jpg")), "image_path": path}
    prepare_rlhf_v(tmp_path, parquet=write_release(tmp_path, record))
    assert [row["image"] for row in read_rows(tmp_path / "rlhf_v" / "qa.parquet")] == [name]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_a_release_that_is_cut_off_is_an_error_of_one_line(tmp_path: Path, share: float) -> None:
    record = rlhf_v_record(0, "question_answering", save_image(tmp_path / "one.jpg"))
    content = write_release(tmp_path, record).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"cut\.parquet is not a Parquet file that can be read: .+") as caught:
        prepare_rlhf_v(tmp_path, parquet=tmp_path / "cut.parquet")
    assert "\n" not in str(caught.value)
