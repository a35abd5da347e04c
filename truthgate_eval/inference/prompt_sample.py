"""Prompts drawn from a task's own, by what they say: order, batches and repetition make no difference."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from truthgate_eval.processes import Processes


def share_sample(contents: Sequence[object], count: int, processes: Processes) -> tuple[list[int], list[int]]:
    """This process's part of the distinct prompts with the smallest hashes among those of all processes.

    Args:
        contents: What tells this process's prompts apart, as values of JSON; the first of equal ones counts.
        count: How many to draw in all; of fewer distinct prompts all are taken.
        processes: Those that draw together.

    Returns:
        Indices of the drawn prompts that this process has, and their places among all that were drawn.

    Example:
        >>> from truthgate_eval.processes import ONE_PROCESS
        >>> one, other = ["b", "a", "c", "a"], ["c", "a", "b"]
        >>> drawn = [[texts[i] for i in share_sample(texts, 2, ONE_PROCESS)[0]] for texts in (one, other)]
        >>> drawn[0] == drawn[1]
        True
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
