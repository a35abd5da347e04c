"""The strength at which a gate changes a model by a given amount.

Gates of different scores and actions are compared at equal strength: at the same mean Kullback-Leibler
divergence of the gated model's next-token distribution from the vanilla model's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from truthgate_eval.errors import GateError

# A mean divergence this close to the target is the target.
TOLERANCE = 0.01
# Prompts that a harness's run finds a strength on; `docs/method.md#equal-strength` says why so many.
PROMPTS = 512
_MOST_STEPS = 40
_LARGEST = 1e4

# The model arguments that are a strength.
StrengthArgument = Literal["lam", "alpha", "yes_offset"]


@dataclass(frozen=True)
class StrengthTarget:
    """A strength that is given by the divergence which it causes, and what is known of it.

    Attributes:
        argument: The model argument that was given as `kl:TARGET`.
        target: Mean divergence from the vanilla model, in nats.
        prompts: On how many prompts the strength is to be found; once it is found, on how many it was.
        reached: The mean divergence at the strength that was found; None before.
        stderr: Its standard error over the prompts: how far the mean on other prompts may be from it.

    Raises:
        GateError: A number is not positive.
    """

    argument: StrengthArgument
    target: float
    prompts: int = PROMPTS
    reached: float | None = None
    stderr: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.target) and self.target > 0):
            raise GateError(f"{self.argument}=kl:{self.target}: expected a positive divergence in nats")
        if self.prompts < 1:
            raise GateError(f"kl_prompts={self.prompts}: expected a positive number of prompts")

    @property
    def text(self) -> str:
        """As a user writes it, `lam=kl:0.05`."""
        return f"{self.argument}=kl:{self.target:g}"

    def describe(self) -> dict[str, Any]:
        """For a results file."""
        return {
            "argument": self.argument,
            "target": self.target,
            "reached": self.reached,
            "stderr": self.stderr,
            "prompts": self.prompts,
        }


def parse_target(value: object) -> float | None:
    """The divergence of `kl:0.05`; None for a value that is not written so.

    Raises:
        GateError: It is written so, but is no positive number.

    Example:
        >>> parse_target("kl:0.05"), parse_target("1.5"), parse_target(2)
        (0.05, None, None)
    """
    if not isinstance(value, str) or not value.strip().lower().startswith("kl:"):
        return None
    text = value.split(":", 1)[1]
    try:
        target = float(text)
    except ValueError:
        target = math.nan
    if not (math.isfinite(target) and target > 0):
        raise GateError(f"{value[:80]}: expected kl: and a positive divergence in nats, such as kl:0.05")
    return target


def find_strength(
    divergence: Callable[[float], float],
    target: float,
    *,
    tolerance: float = TOLERANCE,
    start: float = 0.1,
) -> tuple[float, float]:
    """The smallest strength found at which the divergence is the target.

    For small strengths the divergence grows with the square of the strength; that is the first guess. Then a
    power law through the last two points is followed, between a strength below and one above.

    Args:
        divergence: The mean divergence at a strength, 0 at strength 0.
        target: What it should be, in nats.
        tolerance: How far from the target, relative to it, is near enough.
        start: The strength that is tried first.

    Returns:
        The strength and its divergence.

    Raises:
        GateError: No strength up to 10,000 reaches the target.

    Example:
        >>> strength, reached = find_strength(lambda lam: lam**2 / 2, 0.02)
        >>> round(strength, 3), round(reached, 4)
        (0.2, 0.02)
    """
    below, above = 0.0, math.inf
    strength, exponent = start, 2.0
    before: tuple[float, float] | None = None
    for step in range(1, _MOST_STEPS + 1):
        reached = divergence(strength)
        if math.isfinite(reached) and abs(reached - target) <= tolerance * target:
            return strength, reached
        if math.isfinite(reached) and reached < target:
            below = strength
        else:
            above = strength
        if below >= _LARGEST:
            break
        guess = math.inf
        if math.isfinite(reached) and reached > 0:
            if before is not None:
                exponent = _exponent(before, (strength, reached))
            before = strength, reached
            guess = min(strength * (target / reached) ** (1 / exponent), 10 * strength)
        # A power law may close in from one side only: every fourth step halves the bracket.
        if not below < guess < above or (step % 4 == 0 and math.isfinite(above)):
            guess = (below + above) / 2 if math.isfinite(above) else 4 * below
        strength = min(guess, _LARGEST)
    raise GateError(
        f"no strength changes the model by kl:{target:g}: the nearest found was {below:g}; do the scores "
        "differ within the layers that are gated?"
    )


def _exponent(one: tuple[float, float], other: tuple[float, float]) -> float:
    """The exponent of the power law through two (strength, divergence), within what is sensible."""
    if one[0] == other[0] or one[1] == other[1]:
        return 2.0
    return min(max(math.log(other[1] / one[1]) / math.log(other[0] / one[0]), 0.5), 8.0)
