"""Prompts drawn from a task's own, by what they say: order, batches and repetition make no difference."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from truthgate_eval.processes import Processes


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
    indices = _first_of_each(contents)
    return [indices[key] for key in sorted(indices)[:count]]


def share_sample(contents: Sequence[object], count: int, processes: Processes) -> tuple[list[int], list[int]]:
    """This process's part of the prompts that one process would draw from those of all.

    Args:
        contents: As in `sample_prompts`, of this process's prompts.
        count: How many to draw in all.
        processes: Those that draw together.

    Returns:
        Indices of the drawn prompts that this process has, and their places among all that were drawn.
    """
    indices = _first_of_each(contents)
    owners: dict[str, int] = {}
    for rank, keys in enumerate(processes.exchange(sorted(indices)[:count])):
        for key in keys:
            owners.setdefault(key, rank)
    drawn = sorted(owners)[:count]
    places = [place for place, key in enumerate(drawn) if owners[key] == processes.rank]
    return [indices[drawn[place]] for place in places], places


def _first_of_each(contents: Sequence[object]) -> dict[str, int]:
    """The index of the first of all equal contents, by their hash."""
    indices: dict[str, int] = {}
    for index, content in enumerate(contents):
        indices.setdefault(hashlib.sha256(json.dumps(content).encode()).hexdigest(), index)
    return indices
