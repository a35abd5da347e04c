"""Identical requests are answered once: find the distinct ones, answer them, copy the answers to the others.

POPE's three splits share their "yes" questions, and a harness sends the requests of all tasks together, so
that two of five requests repeat an earlier one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class DistinctRequests:
    """Which requests are the same.

    Attributes:
        first_positions: For each distinct request, where it first occurs.
        distinct_ids: For each request, the number of its distinct request.
    """

    first_positions: tuple[int, ...]
    distinct_ids: tuple[int, ...]

    def scatter(self, answers: Sequence[Answer]) -> list[Answer]:
        """One answer for each request, from one for each distinct request.

        Raises:
            ValueError: There are not as many answers as distinct requests.
        """
        if len(answers) != len(self.first_positions):
            raise ValueError(f"expected {len(self.first_positions)} answers, not {len(answers)}")
        return [answers[distinct] for distinct in self.distinct_ids]


def find_distinct(keys: Sequence[Hashable | None]) -> DistinctRequests:
    """Find requests with equal keys; None equals nothing, not even another None.

    Example:
        >>> find_distinct(["a", None, "a", None])
        DistinctRequests(first_positions=(0, 1, 3), distinct_ids=(0, 1, 0, 2))
    """
    numbers: dict[Hashable, int] = {}
    first_positions: list[int] = []
    distinct_ids: list[int] = []
    for position, key in enumerate(keys):
        new = len(first_positions)
        number = new if key is None else numbers.setdefault(key, new)
        if number == new:
            first_positions.append(position)
        distinct_ids.append(number)
    return DistinctRequests(tuple(first_positions), tuple(distinct_ids))


def answer_distinct(
    requests: Sequence[Request],
    key: Callable[[Request], Hashable | None],
    answer: Callable[[list[Request]], Sequence[Answer]],
) -> list[Answer]:
    """Answers to all requests, in order; of requests with equal keys only the first is computed.

    Args:
        requests: In any order.
        key: What identifies a request; None for one that must be answered by itself.
        answer: Answers a list of requests, in its order.

    Example:
        >>> answer_distinct(["a", "b", "a"], str, lambda some: [text.upper() for text in some])
        ['A', 'B', 'A']
    """
    distinct = find_distinct([key(request) for request in requests])
    return distinct.scatter(answer([requests[position] for position in distinct.first_positions]))


def request_key(
    image_keys: Sequence[Hashable] | None, prompt: str, generation: Mapping[str, Any]
) -> Hashable | None:
    """What identifies a request for text about images.

    None where the request does not decide its answer: it is sampled, or its images are not known.

    Args:
        image_keys: What identifies each image; None if that is unknown.
        prompt: The text of the request.
        generation: The generation settings.
    """
    if image_keys is None or generation.get("do_sample") or float(generation.get("temperature") or 0) > 0:
        return None
    return tuple(image_keys), prompt, json.dumps(dict(generation), sort_keys=True, default=repr)
