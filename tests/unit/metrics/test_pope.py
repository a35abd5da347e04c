"""POPE's three parsers and its metrics."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgate_eval.errors import TaskError
from truthgate_eval.metrics.pope import (
    PARSERS,
    check_parser,
    mean_over_splits,
    parse,
    parse_answer,
    pope_metrics,
)

ANSWERS = ["Yes.", "yes, there is", "No", "not sure", "", "know"]


@pytest.mark.parametrize(
    ("parser", "gold", "expected"),
    [
        ("official", "yes", ["yes", "yes", "no", "no", "yes", "yes"]),
        ("official", "no", ["yes", "yes", "no", "no", "yes", "yes"]),
        ("strict", "yes", [None, None, "no", None, None, None]),
        ("strict", "no", [None, None, "no", None, None, None]),
        ("vcd", "yes", ["yes", "yes", "no", "no", "no", "no"]),
        ("vcd", "no", ["yes", "yes", "no", "no", "yes", "no"]),
    ],
)
def test_each_parser_gives_what_its_script_gives(parser: str, gold: str, expected: list[str | None]) -> None:
    assert [parse(text, gold, check_parser(parser)) for text in ANSWERS] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes. There is no dog.", "yes"),  # only the first sentence counts
        ("No, there is a cat.", "no"),  # commas are dropped before the words are cut
        ("There is not", "no"),
        ("NO", "yes"),  # the script knows No and no only
        ("No\nIt is a cat", "yes"),  # it cuts words at spaces only
        ("nothing", "yes"),
    ],
)
def test_the_official_parser_keeps_the_quirks_of_popes_script(text: str, expected: str) -> None:
    assert parse(text, "no") == expected


@pytest.mark.parametrize("parser", PARSERS)
def test_an_answer_without_yes_or_no_counts_as_unparsed_with_every_parser(parser: str) -> None:
    neither = [parse_answer(text, "no", check_parser(parser)).unparsed for text in ["not sure", "", "know"]]
    assert neither == [True, True, True]
    assert not parse_answer("no", "no", check_parser(parser)).unparsed


def test_strict_counts_an_answer_with_more_than_the_word_as_unparsed() -> None:
    assert parse_answer("Yes.", "yes", "strict").unparsed
    assert not parse_answer("Yes.", "yes", "official").unparsed


def test_metrics_equal_a_count_by_hand() -> None:
    answers = [
        parse_answer(text, gold)
        for text, gold in zip(ANSWERS, ["yes", "no", "no", "yes", "no", "yes"], strict=True)
    ]
    # official: yes yes no no yes yes -> 2 true and 2 false positives, 1 true and 1 false negative
    assert pope_metrics(answers) == pytest.approx(
        {
            "acc": 3 / 6,
            "precision": 2 / 4,
            "recall": 2 / 3,
            "f1": 2 * 2 / (2 * 2 + 2 + 1),
            "yes_ratio": 4 / 6,
            "unparsed": 3 / 6,
        }
    )


@given(
    st.lists(st.tuples(st.sampled_from(ANSWERS), st.sampled_from(["yes", "no"])), min_size=1),
    st.sampled_from(PARSERS),
)
def test_metrics_equal_a_count_of_true_and_false_positives(
    texts_and_golds: list[tuple[str, str]], parser: str
) -> None:
    name = check_parser(parser)
    tp = fp = tn = fn = predicted_yes = 0
    for text, gold in texts_and_golds:
        answer = parse(text, gold, name)
        tp += gold == "yes" and answer == "yes"
        fn += gold == "yes" and answer != "yes"
        fp += gold == "no" and answer == "yes"
        tn += gold == "no" and answer == "no"
        predicted_yes += answer == "yes"
    metrics = pope_metrics(parse_answer(text, gold, name) for text, gold in texts_and_golds)
    assert metrics["acc"] == pytest.approx((tp + tn) / len(texts_and_golds))
    assert metrics["precision"] == pytest.approx(tp / (tp + fp) if tp + fp else 0)
    assert metrics["recall"] == pytest.approx(tp / (tp + fn) if tp + fn else 0)
    assert metrics["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn) if tp else 0)
    assert metrics["yes_ratio"] == pytest.approx(predicted_yes / len(texts_and_golds))


def test_the_yes_ratio_is_that_of_the_predictions() -> None:
    answers = [parse_answer("yes", gold) for gold in ["yes", "no", "yes", "no"]]
    assert pope_metrics(answers)["yes_ratio"] == 1


def test_the_mean_over_splits_gives_each_split_the_same_weight() -> None:
    splits = [pope_metrics([parse_answer("yes", "yes")]), pope_metrics([parse_answer("no", "yes")] * 9)]
    assert mean_over_splits(splits)["acc"] == 0.5


def test_the_error_for_an_unknown_parser_lists_the_parsers() -> None:
    with pytest.raises(TaskError, match=r"'llava'.*official, strict, vcd"):
        check_parser("llava")
