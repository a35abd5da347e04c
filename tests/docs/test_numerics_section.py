"""The section "Numerics" of docs/reliability.md is made of docs/numerics.json, whose figures keep its bounds."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from scripts.numerics.page import (
    AGAINST_FLOAT32,
    BEGIN,
    BOUNDS,
    COLUMNS,
    END,
    OUTPUT,
    PAGE,
    exceeded,
    tables,
)
from scripts.numerics.settings import DTYPES, SETTINGS, TWO_PROCESSES, Results, differences

RECORD: dict[str, Any] = json.loads(OUTPUT.read_text(encoding="utf-8"))


def test_the_page_has_the_tables_of_the_committed_figures() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(BEGIN) == 1
    assert text.split(BEGIN)[1].split(END)[0].strip() == tables(RECORD)


def test_every_setting_in_one_process_was_measured_and_keeps_the_bounds() -> None:
    found = {(row["dtype"], row["setting"]): row for row in RECORD["rows"]}
    expected = {(dtype, str(one)) for dtype in DTYPES for one in SETTINGS}
    with_two = {(dtype, str(TWO_PROCESSES)) for dtype in DTYPES}
    assert expected <= set(found) <= {*expected, *with_two, ("bfloat16", AGAINST_FLOAT32)}
    measured = [row for key, row in found.items() if key in expected | with_two]
    assert not [(row, beyond) for row in measured if (beyond := exceeded(row, RECORD["size"]))]


def test_the_page_names_what_was_not_measured() -> None:
    rows = [row for row in RECORD["rows"] if row["setting"] != str(TWO_PROCESSES)]
    assert f"Not measured: `{TWO_PROCESSES}` in float32;" in tables({**RECORD, "rows": rows})


def results(**change: Any) -> Results:
    """Two choices, one sequence of two layers, one text, of a model and its child."""
    given: dict[str, Any] = {
        "log_likelihoods": [-1.0, -2.0], "activations": np.float32([[[[1.0, -4.0]], [[2.0, 10.0]]]]),
        "texts": ["a"], "poll_log_likelihoods": [-3.0], "poll_texts": ["Yes"],
    }  # fmt: skip
    return Results(**{**given, **change})


@pytest.mark.parametrize(
    ("change", "column", "value"),
    [
        ({"log_likelihoods": [-1.0, -2.5]}, "log_likelihood", 0.5),
        # over the largest of its own layer
        ({"activations": np.float32([[[[1.0, -4.0]], [[3.0, 10.0]]]])}, "activation", 0.1),
        ({"activations": np.float32([[[[2.0, -4.0]], [[2.0, 10.0]]]])}, "activation", 0.25),
        ({"texts": ["b"]}, "texts", 1),
        ({"poll_log_likelihoods": [-2.0]}, "poll_log_likelihood", 1.0),
        ({"poll_texts": ["No"]}, "poll_texts", 1),
        ({"log_likelihoods": [-1.0, float("nan")]}, "log_likelihood", float("nan")),
    ],
)
def test_a_difference_is_in_its_column_and_beyond_the_bound_is_found(
    change: dict[str, Any], column: str, value: float
) -> None:
    row = differences(results(**change), results())
    assert row == {name: pytest.approx(value if name == column else 0, nan_ok=True) for name in COLUMNS}
    size = {"texts": 1, "polls": 1}
    assert exceeded({"dtype": "float32", **row}, size) == [column]
    assert exceeded({"dtype": "float32", **differences(results(), results())}, size) == []


def test_float32_is_bounded_more_closely_than_bfloat16() -> None:
    assert all(BOUNDS["float32"][name] <= BOUNDS["bfloat16"][name] for name in COLUMNS)
