"""Shuffled scores: the same values in each layer, at other heads."""

from __future__ import annotations

import numpy as np
import pytest

from truthgate_eval.errors import GateError
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.gating.shuffle import parse_shuffled, shuffle_within_layers


def test_every_layer_keeps_its_scores_and_what_belongs_to_a_head_stays_there() -> None:
    rng = np.random.default_rng(0)
    scores = TruthScores(
        rng.uniform(size=(6, 8)),
        stderr=rng.uniform(size=(6, 8)),
        probe_weight=rng.normal(size=(6, 8, 4)),
        activation_std=rng.uniform(size=(6, 8)),
        controls={"surface": np.ones((1, 1))},
        control_stderr={"surface": np.ones((1, 1))},
        metadata={"model": "m", "site": "pre", "recommended": {"lam": 2.0}},
    )
    found = shuffle_within_layers(scores, 7)
    np.testing.assert_array_equal(np.sort(found.scores, axis=1), np.sort(scores.scores, axis=1))
    # Each layer has a permutation of its own.
    orders = {
        tuple(np.searchsorted(np.sort(row), shuffled))
        for row, shuffled in zip(np.sort(scores.scores, axis=1), found.scores, strict=True)
    }
    assert len(orders) == 6 and (found.scores != scores.scores).any(axis=1).all()
    np.testing.assert_array_equal(found.probe_weight, scores.probe_weight)
    np.testing.assert_array_equal(found.activation_std, scores.activation_std)
    assert found.stderr is None and found.controls == {}
    assert found.metadata == {**scores.metadata, "shuffled_seed": 7}
    assert np.array_equal(found.scores, shuffle_within_layers(scores, 7).scores)
    assert not np.array_equal(found.scores, shuffle_within_layers(scores, 8).scores)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("shuffled:a.npz:3", ("a.npz", 3)),
        ("shuffled:hf://owner/repo/a.npz:10", ("hf://owner/repo/a.npz", 10)),
        ("shuffled.npz", None),
        ("random:1", None),
    ],
)
def test_the_file_and_the_seed_are_read_from_the_name(name: str, expected: tuple[str, int] | None) -> None:
    assert parse_shuffled(name) == expected


@pytest.mark.parametrize(
    "name", ["shuffled:", "shuffled:a.npz", "shuffled:a.npz:", "shuffled:a.npz:x", "shuffled::1"]
)
def test_a_name_without_file_or_seed_is_refused(name: str) -> None:
    with pytest.raises(GateError, match=r"need a file and a seed, as in shuffled:a\.npz:1"):
        parse_shuffled(name)
