from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from truthgate_eval.errors import ScoresError
from truthgate_eval.gating.head_maps import parse_shape
from truthgate_eval.gating.scores import TruthScores


def write(path: Path, content: Any) -> Path:
    lines = content if path.suffix == ".jsonl" else [content]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_allpaths_lines_are_one_value_for_each_head(tmp_path: Path) -> None:
    rows = [[[1, 0], -0.5], [[0, 1], 0.25], [[0, 0], 3], [[1, 1], 0]]
    scores = TruthScores.load(write(tmp_path / "map.jsonl", rows))
    assert scores.scores.tolist() == [[3, 0.25], [-0.5, 0]]
    assert scores.metadata == {"imported_from": "map.jsonl", "kind": "allpath"}


def test_a_retrieval_score_is_the_mean_of_its_trials(tmp_path: Path) -> None:
    scores = TruthScores.load(write(tmp_path / "map.json", {"0-0": [0, 1], "0-1": [0.5]}))
    assert scores.scores.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(
    "content",
    [[[0, 1], [1, 0, -1]], {"non_hal_heads": [[0, 1]], "hal_heads": [[1, 0]]}],
)
def test_lists_of_heads_are_signs_and_need_the_models_shape(tmp_path: Path, content: Any) -> None:
    file = write(tmp_path / "heads.json", content)
    scores = TruthScores.load(file, shape=(2, 2)).scores
    np.testing.assert_array_equal(scores, [[0, 1], [-1, 0]])
    with pytest.raises(ScoresError, match="--shape"):
        TruthScores.load(file)
    with pytest.raises(ScoresError, match="layer 1, head 0; the model has 1 x 2"):
        TruthScores.load(file, shape=(1, 2))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", [[[0, 0], 1], [[0, 0], 2]], "layer 0, head 0 was there before"),
        ("a.jsonl", [[[0, 1], 1]], "scores 1 heads, expected all 1 x 2"),
        ("a.jsonl", [[[0, -1], 1]], r"\[0, -1\] is not \[layer, head\]"),
        ("a.jsonl", [[[0, 0], None]], "None is not a finite number"),
        ("a.jsonl", [{"layer": 0}], "line 1 is not"),
        ("a.json", {"0-0": []}, "0-0"),
        ("a.json", {"0-0": [True]}, "True is not a finite number"),
        ("a.json", {"99999-0": [1]}, "99999-0"),
        ("a.json", {}, "no head map"),
        ("a.json", {"hal_heads": 3}, "a list of heads"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, name: str, content: Any, message: str) -> None:
    with pytest.raises(ScoresError, match=message):
        TruthScores.load(write(tmp_path / name, content), shape=None)


def test_a_shape_is_layers_x_heads() -> None:
    assert parse_shape(" 32x16") == (32, 16)
    for text in ("32", "0x3", "a x b", "5000x2"):
        with pytest.raises(ScoresError, match="LAYERSxHEADS"):
            parse_shape(text)
