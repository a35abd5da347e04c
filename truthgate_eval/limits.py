"""Limits of documents: a number of them, or a fraction below 1, as lm-eval and lmms-eval take them."""

from __future__ import annotations

import math

from truthgate_eval.errors import TruthGateError


def check_limit(limit: float | None, name: str = "limit") -> None:
    """Raise `TruthGateError` unless a limit leaves at least one document; None is no limit.

    Args:
        limit: A number of documents, or a fraction below 1.
        name: What the message calls it, such as `--limit`.

    Example:
        >>> check_limit(-3, "--limit")
        Traceback (most recent call last):
        ...
        truthgate_eval.errors.TruthGateError: --limit=-3: expected a number of documents, 1 or more, or a \
fraction between 0 and 1
    """
    if limit is not None and not (math.isfinite(limit) and limit > 0):
        raise TruthGateError(
            f"{name}={limit:g}: expected a number of documents, 1 or more, or a fraction between 0 and 1"
        )


def apply_limit(limit: float | None, available: int) -> int:
    """How many of the available documents a limit leaves; a fraction is rounded up, as in lm-eval.

    Args:
        limit: A number of documents, or a fraction below 1; None leaves all.
        available: How many documents there are.

    Raises:
        TruthGateError: The limit is not above 0.

    Example:
        >>> apply_limit(3, 10), apply_limit(0.25, 10), apply_limit(None, 10), apply_limit(99, 10)
        (3, 3, 10, 10)
    """
    check_limit(limit)
    if limit is None:
        return available
    return min(available, math.ceil(available * limit) if limit < 1 else int(limit))
