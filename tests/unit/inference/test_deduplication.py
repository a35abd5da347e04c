from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgate_eval.inference.deduplication import answer_distinct, find_distinct, request_key
from truthgate_eval.metrics.pope import SPLITS


def test_equal_requests_are_answered_once_and_all_get_the_answer() -> None:
    answered: list[list[str]] = []

    def answer(requests: list[str]) -> list[str]:
        answered.append(requests)
        return [request.upper() for request in requests]

    assert answer_distinct(["a", "b", "a", "c", "b"], str, answer) == ["A", "B", "A", "C", "B"]
    assert answered == [["a", "b", "c"]]


def test_requests_without_a_key_are_all_answered() -> None:
    groups = find_distinct([None, "a", None, "a"])
    assert groups.first_positions == (0, 1, 2)
    assert groups.scatter([10, 20, 30]) == [10, 20, 30, 20]


def test_a_wrong_number_of_answers_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 2 answers"):
        find_distinct(["a", "b", "a"]).scatter([1])


@given(st.lists(st.one_of(st.none(), st.integers(0, 5))))
def test_scattered_answers_are_those_of_answering_everything(keys: list[int | None]) -> None:
    assert answer_distinct(keys, lambda key: key, lambda distinct: [repr(key) for key in distinct]) == [
        repr(key) for key in keys
    ]


def test_a_key_tells_images_prompts_and_settings_apart() -> None:
    greedy = {"max_new_tokens": 16, "do_sample": False, "until": ["\n\n"], "temperature": 0.0}
    key = request_key(["a.jpg"], "Is it?", greedy)
    assert key == request_key(["a.jpg"], "Is it?", dict(reversed(greedy.items())))
    others = [
        request_key(["b.jpg"], "Is it?", greedy),
        request_key(["a.jpg", "a.jpg"], "Is it?", greedy),
        request_key(["a.jpg"], "Is it not?", greedy),
        request_key(["a.jpg"], "Is it?", {**greedy, "max_new_tokens": 8}),
    ]
    assert len({key, *others}) == 5


@pytest.mark.parametrize("sampled", [{"do_sample": True}, {"temperature": 0.7}])
def test_sampled_and_unknown_requests_have_no_key(sampled: dict[str, object]) -> None:
    assert request_key(["a.jpg"], "Is it?", sampled) is None
    assert request_key(None, "Is it?", {}) is None


def test_popes_coco_files_have_fewer_questions_than_lines(shared_data: Path) -> None:
    """9,000 lines; 5,127 objects asked about, of which 43 also in a misspelt question ("imange")."""
    keys = []
    for split in SPLITS:
        with (shared_data / "pope" / f"coco_pope_{split}.json").open(encoding="utf-8") as lines:
            records = [json.loads(line) for line in lines]
        keys += [request_key([record["image"]], record["text"], {}) for record in records]
    assert len(keys) == 9000
    assert len(find_distinct(keys).first_positions) == 5170
