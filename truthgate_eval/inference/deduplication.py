"""Asking identical questions once: find the distinct requests, answer them, hand the answers out.

POPE's three splits of a source share their "yes" questions, and a harness sends the requests of all
tasks together, so every third request has been asked before.
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
        first: For each distinct request, the position where it first occurs.
        kind: For each request, the place of its distinct one in `first`.
    """

    first_positions: tuple[int, ...]
    distinct_ids: tuple[int, ...]

    def scatter(self, answers: Sequence[Answer]) -> list[Answer]:
        """One answer for each request, from one for each distinct request."""
        if len(answers) != len(self.first_positions):
            raise ValueError(f"expected {len(self.first_positions)} answers, not {len(answers)}")
        return [answers[place] for place in self.distinct_ids]


def find_distinct(keys: Sequence[Hashable | None]) -> DistinctRequests:
    """Requests with equal keys are one; None is equal to nothing, itself included."""
    places: dict[Hashable, int] = {}
    first: list[int] = []
    kind: list[int] = []
    for position, key in enumerate(keys):
        place = len(first) if key is None else places.setdefault(key, len(first))
        if place == len(first):
            first.append(position)
        kind.append(place)
    return DistinctRequests(tuple(first), tuple(kind))


def answer_distinct(
    requests: Sequence[Request],
    key: Callable[[Request], Hashable | None],
    ask: Callable[[list[Request]], Sequence[Answer]],
) -> list[Answer]:
    """Answers to all requests, in their order; of those with one key, only the first is asked.

    Args:
        requests: In any order.
        key: A request's identity, or None for one that must be asked by itself.
        ask: Answers a list of requests, in its order.
    """
    groups = find_distinct([key(request) for request in requests])
    return groups.scatter(ask([requests[position] for position in groups.first_positions]))


def request_key(
    pictures: Sequence[Hashable] | None, prompt: str, generation: Mapping[str, Any]
) -> Hashable | None:
    """The identity of a request for text about pictures.

    None where the answer is not fixed by the request: when it is sampled, or when it is not known
    which pictures are shown.

    Args:
        pictures: What tells each picture from others, such as its path; None if that is unknown.
        prompt: The text of the request.
        generation: The generation settings.
    """
    if pictures is None or generation.get("do_sample") or float(generation.get("temperature") or 0) > 0:
        return None
    return tuple(pictures), prompt, json.dumps(dict(generation), sort_keys=True, default=repr)
