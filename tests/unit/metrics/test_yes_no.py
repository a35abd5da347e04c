"""Yes/no answers: parsed, and measured against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from truthgate_eval.metrics import yes_no


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "yes"), (" yes.", "yes"), ("Yes.", "yes"), ("yes, there is", "yes"), ("YES", "yes"),
        ("No", "no"), ("No.", "no"), ("the answer is no", "no"), ("no, it is not", "no"), ("No!", "no"),
        ("", None), ("not sure", None), ("know", None), ("I do not know", None), ("none", None),
        ("Yes and no", None), ("yesterday", None), ("Yes\nNo", None),
    ],
)  # fmt: skip
def test_an_answer_is_the_only_one_of_yes_and_no_in_it(text: str, expected: str | None) -> None:
    assert yes_no.parse_yes_no(text) == expected


PREDICTIONS = st.lists(
    st.tuples(st.sampled_from(["yes", "no"]), st.sampled_from(["yes", "no", None])), min_size=1, max_size=40
)


@given(PREDICTIONS)
def test_metrics_equal_those_of_scikit_learn_with_unparsed_as_wrong(
    predictions: list[yes_no.Prediction],
) -> None:
    gold = [g for g, _ in predictions]
    # An unparsed answer is wrong, and it is not yes.
    parsed = [p if p is not None else "no" if g == "yes" else "neither" for g, p in predictions]
    options = {"pos_label": "yes", "zero_division": 0.0}
    binary = ["yes" if p == "yes" else "no" for p in parsed]
    assert yes_no.accuracy(predictions) == pytest.approx(accuracy_score(gold, parsed))
    assert yes_no.precision(predictions) == pytest.approx(precision_score(gold, binary, **options))
    assert yes_no.recall(predictions) == pytest.approx(recall_score(gold, binary, **options))
    assert yes_no.f1(predictions) == pytest.approx(f1_score(gold, binary, **options))


def test_ratios_are_shares_of_the_predictions() -> None:
    predictions: list[yes_no.Prediction] = [("yes", "yes"), ("yes", "yes"), ("no", "yes"), ("no", None)]
    assert yes_no.yes_ratio(predictions) == 0.75 and yes_no.unparsed(predictions) == 0.25
    assert yes_no.accuracy(predictions) == 0.5
    assert yes_no.precision(predictions) == pytest.approx(2 / 3) and yes_no.recall(predictions) == 1.0


@given(PREDICTIONS)
def test_metrics_from_counts_equal_those_of_the_predictions(predictions: list[yes_no.Prediction]) -> None:
    counts = [
        len(predictions),
        sum(gold == parsed for gold, parsed in predictions),
        sum(gold == parsed == "yes" for gold, parsed in predictions),
        sum(parsed == "yes" for _, parsed in predictions),
        sum(gold == "yes" for gold, _ in predictions),
    ]
    assert len(counts) == len(yes_no.COUNTS)
    functions = {
        "acc": yes_no.accuracy,
        "f1": yes_no.f1,
        "precision": yes_no.precision,
        "recall": yes_no.recall,
    }
    expected = [functions[name](predictions) for name in yes_no.METRICS]
    found = yes_no.metrics_from_counts(np.array([counts, counts], dtype=float))
    assert found.shape == (2, 4)
    assert found.tolist() == [pytest.approx(expected, rel=1e-12)] * 2


def test_metrics_from_counts_of_nothing_are_zero_but_the_accuracy_is_undefined() -> None:
    accuracy, *others = yes_no.metrics_from_counts(np.zeros(5)).tolist()
    assert np.isnan(accuracy) and others == [0.0, 0.0, 0.0]
