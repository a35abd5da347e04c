"""The two splits of a task's documents: fixed, without an image or a question in both, and limited."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgate_eval.data import halueval
from truthgate_eval.data.splits import SELECTION, TEST, split_documents, split_indices, split_of_number
from truthgate_eval.errors import TaskError, TruthGateError


@given(st.lists(st.integers(0, 30), min_size=2, max_size=80))
def test_an_image_is_in_one_split_in_any_order_of_the_documents(images: list[int]) -> None:
    documents = [{"image": f"{n}.png", "question": "Is it?"} for n in images]
    splits = dict(zip(images, split_documents(documents), strict=True))
    assert split_documents(documents) == [splits[n] for n in images]
    assert dict(zip(images[::-1], split_documents(documents[::-1]), strict=True)) == splits
    chosen = [n for n, split in splits.items() if split == "selection"]
    assert len(chosen) == max(1, round(len(splits) / 5))


def test_documents_keep_their_subset_and_limits_apply_to_each_split() -> None:
    documents = [
        {"subset": split, "question": str(n)} for n, split in enumerate(["evaluation", "selection"] * 6)
    ]
    indices = split_indices("t", documents, {"selection": 2, "evaluation": None})
    assert indices == {"selection": [1, 3], "evaluation": [0, 2, 4, 6, 8, 10]}
    with pytest.raises(TaskError, match="task 't': none of its 6 documents is in the selection split"):
        split_indices("t", documents[::2], {})


def test_the_split_of_documents_is_the_one_of_earlier_versions() -> None:
    """Settings were chosen on these documents: another split would choose on what they are tested on."""
    documents = [{"image": f"{n}.png", "question": "Is it?"} for n in range(12)]
    assert [n for n, split in enumerate(split_documents(documents)) if split == SELECTION] == [2, 11]
    documents = [{"question": f"Is it {n}?"} for n in range(12)]
    assert [n for n, split in enumerate(split_documents(documents)) if split == SELECTION] == [1, 4]


@pytest.mark.parametrize("limit", [-3, 0, -0.5])
def test_a_limit_that_leaves_no_document_is_refused(limit: float) -> None:
    documents = [{"question": str(n)} for n in range(20)]
    with pytest.raises(TruthGateError, match="expected a number of documents, 1 or more"):
        split_indices("t", documents, {SELECTION: limit})


def test_a_limit_can_be_a_fraction() -> None:
    documents = [{"question": str(n)} for n in range(50)]
    indices = split_indices("t", documents, {TEST: 0.25})
    assert (len(indices[SELECTION]), len(indices[TEST])) == (10, 10)


def test_halueval_has_the_same_fifth() -> None:
    records = [
        {"knowledge": "", "question": str(n), "right_answer": "a", "hallucinated_answer": "b"}
        for n in range(400)
    ]
    documents = [halueval.make_judgement("qa", n, record) for n, record in enumerate(records)]
    numbers = [halueval.deterministic_draw("qa", record, "selection") for record in records]
    assert split_documents(documents) == [split_of_number(number) for number in numbers]
    assert [doc["subset"] == SELECTION for doc in documents] == [
        halueval.in_selection("qa", record) for record in records
    ]
