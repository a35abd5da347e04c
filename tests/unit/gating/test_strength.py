from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from truthgate_eval.errors import GateError
from truthgate_eval.gating.strength import find_strength, parse_target


@pytest.mark.parametrize(
    "divergence",
    [
        lambda x: x**2,
        lambda x: 1e-6 * x**2,
        lambda x: 1e4 * x**2,
        lambda x: math.log1p(x**3),
        lambda x: 0.0 if x < 0.5 else (x - 0.5),  # nothing happens up to some strength
        lambda x: math.nan if x > 0.01 else x,  # a model that breaks
        lambda x: x**2 + 0.001 * math.sin(50 * x),
    ],
)
@pytest.mark.parametrize("target", [0.001, 0.005, 0.009])
def test_the_strength_reaches_the_target(divergence: Callable[[float], float], target: float) -> None:
    strength, reached = find_strength(divergence, target)
    assert reached == divergence(strength) == pytest.approx(target, rel=0.011)


def test_few_evaluations_are_enough_for_a_square() -> None:
    calls: list[float] = []
    find_strength(lambda x: calls.append(x) or 3 * x**2, 0.05)  # type: ignore[func-returns-value]
    assert len(calls) <= 3


def test_a_gate_that_changes_nothing_is_named() -> None:
    with pytest.raises(GateError, match=r"no strength changes the model by kl:0\.05"):
        find_strength(lambda _: 0.0, 0.05)


def test_a_target_is_kl_and_a_positive_number() -> None:
    assert parse_target("KL:0.1") == 0.1
    assert parse_target(0.3) is None and parse_target("0.3") is None
    for text in ("kl:", "kl:-1", "kl:0", "kl:inf", "kl:x"):
        with pytest.raises(GateError, match="positive divergence"):
            parse_target(text)
