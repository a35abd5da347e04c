"""`truthgate data` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.images import save_image
from typer.testing import CliRunner

from truthgate_eval.cli.data import data_app


def test_a_poll_is_made_and_the_command_that_uses_it_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path / "data"))
    lines = [{"image": f"{n}.png", "objects": [f"thing {n}", "dog"]} for n in range(3)]
    for line in lines:
        save_image(tmp_path / "images" / str(line["image"]))
    (tmp_path / "annotations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["--images", str(tmp_path / "images"), "--annotations", str(tmp_path / "annotations.jsonl")]
    result = CliRunner().invoke(data_app, ["poll", *arguments, "--min-objects", "2"])
    assert result.exit_code == 0, result.output
    assert "poll/random: 12 rows" in result.output
    assert "use with: lmms_eval --tasks poll" in result.output
    assert (tmp_path / "data" / "poll" / "adversarial.parquet").is_file()


def test_images_with_objects_are_prepared_for_chair_by_either_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path / "data"))
    save_image(tmp_path / "images" / "1.png")
    coco = {
        "images": [{"id": 1, "file_name": "1.png"}],
        "annotations": [{"image_id": 1, "category_id": 1}],
        "categories": [{"id": 1, "name": "dog"}],
    }
    files = {name: tmp_path / name for name in ("instances.json", "captions.json", "synonyms.txt")}
    files["instances.json"].write_text(json.dumps(coco))
    captions = [{"image_id": 1, "caption": "A puppy and a cat."}]
    files["captions.json"].write_text(json.dumps({"images": coco["images"], "annotations": captions}))
    files["synonyms.txt"].write_text("dog, puppy\ncat\n")
    common = ["--images", str(tmp_path / "images"), "--annotations", str(files["instances.json"])]
    published = ["--synonyms", str(files["synonyms.txt"]), "--captions", str(files["captions.json"])]
    result = CliRunner().invoke(data_app, ["chair", *common, *published, "--limit", "5"])
    assert result.exit_code == 0, result.output
    assert "chair/test: 1 rows" in result.output and "chair/objects: 2 rows" in result.output
    assert "1 of 1 images have reference captions" in result.output
    assert "use with: lmms_eval --tasks chair\n" in result.output
    result = CliRunner().invoke(data_app, ["chair-poll", *common])
    assert result.exit_code == 0, result.output
    assert "chair_poll/objects: 1 rows" in result.output
    assert "use with: lmms_eval --tasks chair_poll" in result.output
