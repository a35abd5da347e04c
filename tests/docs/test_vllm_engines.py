"""The section of docs/engines.md about vLLM is made of the figures that `scripts.vllm_check` wrote."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from scripts.engines.page import PAGE
from scripts.engines.sections import read_section
from scripts.engines.vllm import MODULE, section
from scripts.vllm_check.figures import failures, rows
from scripts.vllm_check.settings import OUTPUT

FOUND: dict[str, Any] = json.loads(OUTPUT.read_text(encoding="utf-8"))


def test_the_page_has_the_section_of_the_committed_figures() -> None:
    assert read_section(PAGE.read_text(encoding="utf-8"), MODULE) == section(FOUND)


def test_no_committed_figure_is_a_failure() -> None:
    assert rows(FOUND) and failures(FOUND) == []


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("texts", "differ", 1, "1 of 50 texts differ"),
        ("texts", "difference", 0.01, "differs by 1.0e-02"),
        ("texts", "prefix_caching", False, "prefix caching is off"),
        ("choices", "vllm", float("nan"), "exported checkpoint, 24 choices, pre: differs by nan"),
        ("tensor_parallel", "gate", 0.0, "the gate changes only 0.0e+00"),
        ("pipeline_parallel", "differ", 1, "1 layers otherwise"),
    ],
)
def test_a_wrong_figure_is_a_failure(part: str, name: str, value: float, message: str) -> None:
    found: dict[str, Any] = {
        "versions": {},
        "texts": {"prompts": 50, "differ": 0, "difference": 0.0, "gate": 1.0, "prefix_caching": True},
        "choices": {"count": 24, "gate": 1.0, "gated_vllm": 0.0, "vllm": 0.0},
        "tensor_parallel": {"pre": 0.0, "post": 0.0, "gate": 1.0},
        "pipeline_parallel": {"layers": [[0, 1], [2, 3]], "differ": 0},
    }
    assert failures(found) == []
    wrong = copy.deepcopy(found)
    wrong[part][name] = value
    assert any(message in line for line in failures(wrong))
