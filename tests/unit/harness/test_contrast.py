"""The arithmetic of a contrast, its model arguments, and the tasks that it can be used with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from truthgate_eval.errors import GateError, TaskError
from truthgate_eval.harness.contrast import Contrast, with_contrast
from truthgate_eval.metrics.log_odds import log_odds_of_spellings


def test_log_odds_are_those_of_the_contrasted_distribution() -> None:
    rng = np.random.default_rng(0)
    with_context, without = np.log(rng.dirichlet(np.ones(6), size=2))
    contrast = Contrast(0.7)
    logits = (1 + 0.7) * with_context - 0.7 * without
    distribution = np.exp(logits) / np.exp(logits).sum()
    combined = [contrast.combine(*pair) for pair in zip(with_context, without, strict=True)]
    expected = np.log(distribution[:2].sum()) - np.log(distribution[2:4].sum())
    assert log_odds_of_spellings(combined[:2], combined[2:4]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, None),
        ({"contrast": "None", "contrast_image": ""}, None),
        ({"contrast": 0}, None),
        ({"contrast": "0.5"}, Contrast(0.5, "black")),
        ({"contrast": 1, "contrast_image": "none"}, Contrast(1.0, "none")),
    ],
)
def test_arguments_as_harnesses_parse_them_are_understood(
    arguments: dict[str, Any], expected: Contrast | None
) -> None:
    assert Contrast.parse(arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"contrast": "strong"}, "contrast=strong is not a number"),
        ({"contrast": "nan"}, "contrast=nan is not a finite number"),
        ({"contrast": -1}, "contrast=-1 would favour what the context makes unlikely"),
        (
            {"contrast": 1, "contrast_image": "grey"},
            "unknown contrast_image 'grey': expected one of black, none",
        ),
        ({"contrast_image": "black"}, "contrast_image has no effect without contrast=ALPHA"),
    ],
)
def test_a_mistake_is_one_clear_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(GateError, match=message) as error:
        Contrast.parse(arguments)
    assert "\n" not in str(error.value)


def test_a_task_that_generates_is_refused_with_its_twin_named() -> None:
    contrast = Contrast(0.5)
    for output_type in ("multiple_choice", "loglikelihood"):
        contrast.check_output_type("halueval_qa", output_type, "lm_eval")
    with pytest.raises(TaskError, match=r"'halueval_qa' generates text: use halueval_qa_logodds$"):
        contrast.check_output_type("halueval_qa", "generate_until", "lm_eval")
    with pytest.raises(TaskError, match=r"'scenes_random' generates text: use scenes_random_logodds$"):
        contrast.check_output_type("scenes_random", "generate_until_multi_round", "lmms_eval")
    with pytest.raises(
        TaskError, match=r"'gsm8k' generates text: use a task .* such as those named \*_logodds"
    ):
        contrast.check_output_type("gsm8k", "generate_until", "lm_eval")
    with pytest.raises(TaskError, match="'wikitext' is of type loglikelihood_rolling"):
        contrast.check_output_type("wikitext", "loglikelihood_rolling", "lm_eval")


def test_a_results_file_has_the_contrast_beside_the_gate() -> None:
    gate = {"kind": "vanilla"}
    assert with_contrast(gate, None) == gate
    assert with_contrast(gate, {"alpha": 0.5}) == {"kind": "vanilla", "contrast": {"alpha": 0.5}}
    assert gate == {"kind": "vanilla"}
