"""Prompts drawn from a task's own, by what they say: order, batches and repetition make no difference."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence


def sample_prompts(contents: Sequence[object], count: int) -> list[int]:
    """Indices of distinct prompts with the smallest hashes; of equal prompts the first.

    Args:
        contents: What tells prompts apart, of values that JSON has.
        count: How many to draw; of fewer distinct prompts all are taken.

    Example:
        >>> one, other = ["b", "a", "c", "a"], ["c", "a", "b"]
        >>> [one[i] for i in sample_prompts(one, 2)] == [other[i] for i in sample_prompts(other, 2)]
        True
    """
    indices: dict[str, int] = {}
    for index, content in enumerate(contents):
        indices.setdefault(hashlib.sha256(json.dumps(content).encode()).hexdigest(), index)
    return [indices[key] for key in sorted(indices)[:count]]
