"""A study's folder: what is damaged in it is done again, with a warning. Its pages take no name for their own."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.hostile import HOSTILE

from truthgate_eval.attribution.study import StudyResult
from truthgate_eval.attribution.study_report import save
from truthgate_eval.attribution.study_rows import StudyRows, read_row
from truthgate_eval.cli.study_run import _make_scores
from truthgate_eval.gating.scores import TruthScores

LENGTHS = {"odds": 2}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]", b"\xff", b"{}", b'{"odds": 5}', b'{"odds": [1]}', b'{"odds": [1, "x"]}', b'{"odds": [1, 1e999]}'],
)  # fmt: skip
def test_a_damaged_row_is_computed_again(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = StudyRows.__new__(StudyRows)
    rows._folder, rows._key = tmp_path, {}
    row: dict[str, Any] = {"odds": [0.5, -1.0]}
    assert rows._kept("a", lambda: row, LENGTHS) == row
    assert rows._kept("a", lambda: pytest.fail("computed again"), LENGTHS) == row
    [file] = tmp_path.glob("row-*.json")
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert rows._kept("a", lambda: row, LENGTHS) == row
    assert f"{file} is damaged: what it held is done again" in caplog.text
    assert read_row(file, LENGTHS) == row


def test_damaged_scores_are_made_again_and_have_no_credential(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[str] = []

    def make(kind: str, _progress: Any) -> TruthScores:
        made.append(kind)
        return TruthScores(np.ones((1, 2)))

    maker: Any = SimpleNamespace(make=make)
    key = {"tasks": "t", "metadata": {"token": "abc123", "subset": "a"}}
    for _ in range(2):
        _make_scores(maker, ["gradient"], key, tmp_path)
    assert made == ["gradient"]
    file = tmp_path / "scores-gradient.npz"
    assert b"abc123" not in file.read_bytes()
    file.write_bytes(file.read_bytes()[:100])
    _make_scores(maker, ["gradient"], key, tmp_path)
    assert made == ["gradient"] * 2 and "the scores are made again" in caplog.text
    assert TruthScores.load(file).shape == (1, 2)


@pytest.mark.parametrize("name", [" ".join(HOSTILE), "$\\frac{"])
def test_a_studys_pages_show_names_as_text(name: str, tmp_path: Path) -> None:
    vanilla = {"log_loss": 0.5, "accuracy": 0.5, "auroc": None, "documents": 4, "clusters": 4}
    result = StudyResult(vanilla, empty=[name], correlations={name: {name: 1.0}})
    save({name: result}, {"tasks": name, "metadata": {"token": "abc123"}}, tmp_path)
    page = (tmp_path / "study.md").read_text()
    assert not {chr(n) for n in (*range(10), *range(11, 32), *range(0x7F, 0xA0))} & set(page)
    assert not set("\u202e\u2028") & set(page) and "<script>" not in page.replace("\\<", "")
    assert page.count("abc123") == (tmp_path / "study.json").read_text().count("abc123") == 0
    json.loads((tmp_path / "study.json").read_text())
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")
