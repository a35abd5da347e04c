"""The folds: properties that hold for any groups, and the released code's own division."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from truthgate_eval.errors import ProbeError
from truthgate_eval.probing.folds import make_folds

GROUPS = st.lists(st.integers(-3, 40), min_size=6, max_size=80).filter(lambda names: len(set(names)) >= 6)


@hypothesis_settings(deadline=None, max_examples=60)
@given(GROUPS, st.integers(1, 6), st.sampled_from(["question", "sequence"]), st.integers(0, 2**32 - 1))
def test_folds_divide_the_sequences(names: list[int], folds: int, split: str, seed: int) -> None:
    groups = np.array(names)
    parts = make_folds(groups, folds=folds, split=split, seed=seed)
    assert len(parts) == folds
    for train, validation in parts:
        assert len(train) and len(validation)
        assert sorted([*train, *validation]) == list(range(len(groups)))
        if split == "question":
            assert not set(groups[train]) & set(groups[validation])
    if folds > 1:
        assert sorted(np.concatenate([validation for _, validation in parts])) == list(range(len(groups)))
    again = make_folds(groups, folds=folds, split=split, seed=seed)
    for pair, pair_again in zip(parts, again, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(pair, pair_again, strict=True))


def test_split_by_sequence_is_the_released_codes_kfold() -> None:
    groups = np.repeat(np.arange(50), 2)
    theirs = KFold(5, shuffle=True, random_state=42).split(np.zeros(100))
    for ours, (train, validation) in zip(make_folds(groups, split="sequence"), theirs, strict=True):
        np.testing.assert_array_equal(ours[0], train)
        np.testing.assert_array_equal(ours[1], validation)


def test_one_fold_is_one_four_to_one_split() -> None:
    for split in ("question", "sequence"):
        ((train, validation),) = make_folds(np.repeat(np.arange(50), 2), folds=1, split=split)
        assert len(train) == 80 and len(validation) == 20


def test_another_seed_gives_other_folds_and_the_groups_names_do_not_matter() -> None:
    groups = np.repeat(np.arange(50), 2)
    first, other = make_folds(groups, seed=1)[0][1], make_folds(groups, seed=2)[0][1]
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(first, make_folds(groups * 10 + 3, seed=1)[0][1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "token"}, "unknown split 'token': expected one of question, sequence"),
        ({"folds": 0}, "folds=0: expected 1"),
        ({"seed": -1}, "seed=-1: expected 0 to"),
        ({"folds": 11}, "10 questions cannot be divided into 11 parts"),
        ({"folds": 21, "split": "sequence"}, "20 sequences cannot be divided into 21 parts"),
        ({"groups": np.array([0, 0, 1, 1]), "folds": 1}, "2 questions cannot be divided into 5 parts"),
    ],
)
def test_every_mistake_is_one_line(change: dict, message: str) -> None:
    arguments = {"groups": np.repeat(np.arange(10), 2), **change}
    with pytest.raises(ProbeError, match=message):
        make_folds(**arguments)
