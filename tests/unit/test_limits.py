"""Limits of documents: what they leave, and what is refused."""

from __future__ import annotations

import math

import pytest

from truthgate_eval.errors import TruthGateError
from truthgate_eval.limits import apply_limit, check_limit


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(None, 10), (3, 3), (3.0, 3), (1, 1), (10, 10), (99, 10), (0.25, 3), (0.001, 1), (0.99, 10)],
)
def test_a_limit_leaves_a_number_or_a_fraction_of_the_documents(limit: float | None, expected: int) -> None:
    check_limit(limit)
    assert apply_limit(limit, 10) == expected


@pytest.mark.parametrize("limit", [-3, -0.5, 0, 0.0, math.nan, math.inf, -math.inf])
def test_a_limit_that_leaves_no_document_is_refused(limit: float) -> None:
    with pytest.raises(TruthGateError, match=r"--limit=.*: expected a number of documents, 1 or more, or a"):
        check_limit(limit, "--limit")
    with pytest.raises(TruthGateError, match="limit="):
        apply_limit(limit, 10)
