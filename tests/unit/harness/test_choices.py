"""The right choices of a document, for each way in which a task's file writes a target."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from truthgate_eval.harness.choices import right_choices, spellings


def task(choices: Any, target: Any, **fields: Any) -> tuple[ConfigurableTask, dict[str, Any]]:
    """A real task of lm-eval with one document, which has these fields."""
    document = {"text": "Is it?", **fields}
    made = ConfigurableTask(
        config={
            "task": "own",
            "custom_dataset": lambda **_: {"test": Dataset.from_list([document])},
            "output_type": "multiple_choice",
            "test_split": "test",
            "doc_to_text": "text",
            "doc_to_choice": choices,
            "doc_to_target": target,
        }
    )
    return made, document


@pytest.mark.parametrize(
    ("choices", "target", "fields", "right"),
    [
        (["a", "b", "c"], 1, {}, [0, 1, 0]),
        (["a", "b", "c"], "answer", {"answer": "c"}, [0, 0, 1]),
        (["a", "b", "c"], "answer", {"answer": 0}, [1, 0, 0]),
        (["a", "b", "c"], "answer", {"answer": [0, 2]}, [1, 0, 1]),
        (["Yes", "No"], "answer", {"answer": "No"}, [0, 1]),
        (["Yes", "No"], "answer", {"answer": "no"}, [0, 1]),
        (["Yes", "yes", "No", "no"], "answer", {"answer": "yes"}, [1, 1, 0, 0]),
        (["Yes", "yes", "No", "no"], 3, {}, [0, 0, 1, 1]),
        (["yes", "no", "maybe"], "answer", {"answer": "no"}, [0, 1, 0]),
        (["No", "Yes"], "answer", {"answer": True}, [0, 1]),
        (["wrong", "right"], "answer", {"answer": False}, [1, 0]),
    ],
)
def test_targets_are_indices_texts_or_lists_and_spellings_count_alike(
    choices: list[str], target: Any, fields: dict[str, Any], right: list[int]
) -> None:
    assert right_choices(*task(choices, target, **fields)).astype(int).tolist() == right


def test_both_answers_have_the_same_spellings_where_one_target_is_in_lower_case() -> None:
    assert spellings({"yes": "Yes", "no": "no"}) == ["Yes", "yes", "no", "No"]
    assert spellings({"no": "no"}) == ["yes", "Yes", "no", "No"]
    assert spellings({"yes": "YES"}) == ["YES", "NO"]
