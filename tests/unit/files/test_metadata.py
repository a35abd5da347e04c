"""Artifacts whose metadata would fail later are refused when they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.bounds import check_refused

from truthgate_eval.errors import GateError
from truthgate_eval.gating.gate_arguments import parse_layers
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.scores import TruthScores


@pytest.mark.parametrize(
    "layers", ["0-20000000", "99999999999-99999999999", "1024", "0-" + "9" * 5000, [10**30]]
)
def test_layers_beyond_every_model_are_refused(layers: object, tmp_path: Path) -> None:
    check_refused(lambda: parse_layers(layers), "layers=")
    scores = TruthScores(
        np.ones((2, 2)), metadata={"recommended": {"lam": 1.0, "norm": "none", "layers": layers}}
    )
    path = scores.save(tmp_path / "a.npz")
    check_refused(lambda: GateConfig.parse(str(path)), "layers=")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"model": 5}, "`model` is 5, expected a text"),
        ({"probe": "newton"}, "`probe` is 'newton', expected an object"),
        ({"probe": None}, "`probe` is None, expected an object"),
        ({"probe": {"class_balance": "a"}}, r"`probe\.class_balance` is 'a', expected a number"),
        ({"reliability": {"all": None}}, r"`reliability\.all` is None, expected a number"),
        ({"own_answers": {"accuracy": 0.5}}, "accuracy without documents"),
        ({"own_answers": {"words": 800}}, r"`own_answers\.words` is 800"),
        ({"own_answers": {"words": -1, "spellings": [{"answers": ["a"]}]}}, "an entry without log_probability"),
        ({"recommended": None}, "`recommended` is None"),
        ({"recommended": {"conditions": []}}, r"`recommended\.conditions` is \[\]"),
    ],
)  # fmt: skip
def test_metadata_of_another_type_are_refused_at_load(metadata: Any, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", scores=np.ones((1, 2)), metadata=np.array(json.dumps(metadata)))
    check_refused(lambda: TruthScores.load(tmp_path / "a.npz"), message)


def test_a_layer_number_that_is_one_is_taken() -> None:
    assert parse_layers("0+1022-1023") == (0, 1022, 1023)
    with pytest.raises(GateError, match="no model has a layer 1024"):
        parse_layers("1024")
