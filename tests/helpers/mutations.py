"""Random changes of what JSON files hold, for tests that any file ends in a valid object or in our own error."""

from __future__ import annotations

import copy
import math
from typing import Any

from hypothesis import strategies as st

VALUES_LIST = [
    None, True, 0, -1, 2.5, 2**63, 10**30, math.nan, math.inf, [], [[None]], [5], ["a"], {}, {"type": {}},
     {"lam": {}}, "", " ", "x", "Dog ", "7", "\ud800", "a\u2028b", "a\0b", "/", "..", "../a", "x" * 5000,
    "\x1b[31m", "[/red]", "<script>", "=cmd", 1e308, -1e308, 10**400, {"": 1}, "0-20000000", "kl:x", "$\\frac{",
]  # fmt: skip
VALUES = st.sampled_from(VALUES_LIST)


def change_values(draw: st.DrawFn, value: Any, *, changes: int) -> None:
    """Replace or remove up to so many values inside a list or an object, at any depth."""
    for _ in range(draw(st.integers(0, changes))):
        found = places(value)
        if not found:
            return
        container, key = draw(st.sampled_from(found))
        if draw(st.booleans()):
            container[key] = copy.deepcopy(draw(VALUES))
        else:
            del container[key]


def nest(levels: int) -> list[Any]:
    """An empty list inside so many lists."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every list or object inside a value, with each of its indices or names."""
    names = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for name in names for place in ((value, name), *places(value[name]))]
