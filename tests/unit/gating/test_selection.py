"""Selected heads against a plain loop, and against AllPath's published list."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from truthgate_eval.errors import GateError
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.gating.selection import HeadSelection, random_selection_gate, select_gate, select_heads


def by_hand(scores: np.ndarray, top: int, bottom: int, groups: list[list[int]]) -> np.ndarray:
    """Factors 3 and 0.5, head by head; `groups` are lists of layers that are ranked together."""
    factors = np.ones(scores.shape)
    for layers in groups:
        heads = [(layer, head) for layer in layers for head in range(scores.shape[1])]
        ranked = sorted(heads, key=lambda at: (-scores[at], at))
        for at in ranked[:top]:
            factors[at] = 3
        for at in ranked[len(ranked) - bottom :]:
            factors[at] = 0.5
    return factors


@pytest.mark.parametrize("decimals", [8, 1])  # with one decimal many scores are equal
@pytest.mark.parametrize(("top", "bottom"), [(5, 3), (0, 4), (4, 0), (5, 7)])
def test_the_highest_and_the_lowest_scores_get_their_factors(top: int, bottom: int, decimals: int) -> None:
    scores = np.random.default_rng(0).uniform(size=(6, 12)).round(decimals)
    of_all = HeadSelection(top, bottom, 3, 0.5)
    of_layers = HeadSelection(top, bottom, 3, 0.5, per="layer")
    chosen = [1, 4]
    for found, groups in (
        (select_heads(scores, of_all), [list(range(6))]),
        (select_heads(scores, of_all, layers=chosen), [chosen]),
        (select_heads(scores, of_layers), [[layer] for layer in range(6)]),
        (select_heads(scores, of_layers, layers=chosen), [[1], [4]]),
    ):
        np.testing.assert_array_equal(found, by_hand(scores, top, bottom, groups))


def test_heads_of_equal_score_rank_in_the_order_of_layer_and_head(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = select_heads(np.zeros((2, 3)), HeadSelection(2, 3))
    assert found.tolist() == [[2, 2, 1], [0, 0, 0]]
    assert [record.message for record in caplog.records] == [
        "top: 6 heads have the score 0 at the limit; their layer and number decided",
        "bottom: 6 heads have the score 0 at the limit; their layer and number decided",
    ]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        select_heads(np.arange(6.0).reshape(2, 3), HeadSelection(2, 3))
    assert not caplog.records


def test_allpaths_heads_are_the_first_and_the_last_twenty_of_its_sorted_file(shared_data: Path) -> None:
    file = shared_data / "heads" / "allpath_coco-adversarial-format.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [value for _, value in rows] == sorted(value for _, value in rows)
    gate = select_gate(TruthScores.load(file), HeadSelection())
    doubled = {tuple(np.argwhere(gate.values == 2)[i].tolist()) for i in range(20)}
    removed = {tuple(np.argwhere(gate.values == 0)[i].tolist()) for i in range(20)}
    assert doubled == {tuple(head) for head, _ in rows[-20:]}
    assert removed == {tuple(head) for head, _ in rows[:20]}
    assert (gate.values == 1).sum() == 1024 - 40 and gate.site == "post"


def test_random_selections_are_of_equal_size_and_fixed_by_their_seed() -> None:
    selection = HeadSelection(7, 5, 2, 0)
    gates = [random_selection_gate((8, 8), selection, seed=seed).values for seed in range(200)]
    for values in gates:
        assert ((values == 2).sum(), (values == 0).sum()) == (7, 5)
    assert np.array_equal(gates[3], random_selection_gate((8, 8), selection, seed=3).values)
    assert not np.array_equal(gates[3], gates[4])
    # Every head is as likely as any other: 200 gates of 7 of 64 heads take each about 22 times.
    times = (np.stack(gates) == 2).sum(axis=0)
    assert times.min() >= 8 and times.max() <= 40
    in_layers = random_selection_gate((8, 8), HeadSelection(1, 2, per="layer"), seed=0, layers=[0, 7])
    assert ((in_layers.values == 2).sum(axis=1) == [1, 0, 0, 0, 0, 0, 0, 1]).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top": 0, "bottom": 0}, "selects no heads"),
        ({"top": -1}, "selects no heads"),
        ({"per": "head"}, "unknown per 'head': expected one of all, layer"),
        ({"factor_in": float("nan")}, "in=nan is not a finite number"),
        ({"factor_out": float("inf")}, "out=inf is not a finite number"),
    ],
)
def test_a_selection_that_does_not_exist_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(GateError, match=message):
        HeadSelection(**values)


def test_more_heads_than_there_are_are_refused() -> None:
    scores = np.arange(12.0).reshape(3, 4)
    with pytest.raises(GateError, match="top=20,bottom=20 are more than the 12 heads to select from"):
        select_heads(scores, HeadSelection())
    with pytest.raises(GateError, match="top=3,bottom=2 are more than the 4 heads in a layer"):
        select_heads(scores, HeadSelection(3, 2, per="layer"))
    with pytest.raises(GateError, match="top=3,bottom=2 are more than the 4 heads to select from"):
        select_heads(scores, HeadSelection(3, 2), layers=[1])
    with pytest.raises(GateError, match="0 to 2"):
        select_heads(scores, HeadSelection(3, 2), layers=[3])
