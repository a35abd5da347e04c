from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from truthgate_eval.metrics import yes_no as judgement


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "yes"), (" yes.", "yes"), ("Yes.", "yes"), ("yes, there is", "yes"), ("YES", "yes"),
        ("No", "no"), ("No.", "no"), ("the answer is no", "no"), ("no, it is not", "no"), ("No!", "no"),
        ("", None), ("not sure", None), ("know", None), ("I do not know", None), ("none", None),
        ("Yes and no", None), ("yesterday", None), ("Yes\nNo", None),
    ],
)  # fmt: skip
def test_an_answer_is_the_one_word_it_says(text: str, expected: str | None) -> None:
    assert judgement.parse_yes_no(text) == expected


PAIRS = st.lists(
    st.tuples(st.sampled_from(["yes", "no"]), st.sampled_from(["yes", "no", None])), min_size=1, max_size=40
)


@given(PAIRS)
def test_metrics_are_scikit_learns_with_unparsed_as_a_wrong_answer(pairs: list) -> None:
    gold = [g for g, _ in pairs]
    # An unparsed answer is wrong, and it never says yes.
    parsed = [p if p is not None else "no" if g == "yes" else "neither" for g, p in pairs]
    options = {"pos_label": "yes", "zero_division": 0.0}
    binary = ["yes" if p == "yes" else "no" for p in parsed]
    assert judgement.accuracy(pairs) == pytest.approx(accuracy_score(gold, parsed))
    assert judgement.precision(pairs) == pytest.approx(precision_score(gold, binary, **options))
    assert judgement.recall(pairs) == pytest.approx(recall_score(gold, binary, **options))
    assert judgement.f1(pairs) == pytest.approx(f1_score(gold, binary, **options))


def test_ratios_are_of_the_predictions() -> None:
    pairs = [("yes", "yes"), ("yes", "yes"), ("no", "yes"), ("no", None)]
    assert judgement.yes_ratio(pairs) == 0.75 and judgement.unparsed(pairs) == 0.25
    assert judgement.accuracy(pairs) == 0.5
    assert judgement.precision(pairs) == pytest.approx(2 / 3) and judgement.recall(pairs) == 1.0
