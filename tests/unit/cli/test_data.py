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
