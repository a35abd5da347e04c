from __future__ import annotations

import hashlib
import json
import random
from typing import Any

from truthgate_eval.inference.prompt_sample import share_sample
from truthgate_eval.processes import ONE_PROCESS, Processes

CONTENTS = [["a question", n, "an image's key"] for n in range(200)]


def sample(contents: list[Any], count: int) -> list[int]:
    return share_sample(contents, count, ONE_PROCESS)[0]


def chosen(contents: list[list[object]], count: int) -> list[list[object]]:
    return [contents[i] for i in sample(contents, count)]


def test_order_and_repetition_make_no_difference() -> None:
    mixed = [*CONTENTS, *CONTENTS[:50]]
    random.Random(0).shuffle(mixed)
    assert chosen(mixed, 64) == chosen(CONTENTS, 64)
    assert len({str(one) for one in chosen(mixed, 64)}) == 64


def test_more_prompts_are_the_same_and_others() -> None:
    assert chosen(CONTENTS, 100)[:64] == chosen(CONTENTS, 64)
    # The first documents of a task are not its first prompts.
    assert len([one for one in chosen(CONTENTS, 100) if one in CONTENTS[:100]]) < 70


def test_of_few_prompts_all_are_taken() -> None:
    assert sorted(sample(["x", "y", "x"], 64)) == [0, 1]


class OfTwo(Processes):
    """The first of two processes; the other one has drawn the hashes of `other`."""

    other: tuple[str, ...] = ()

    def exchange(self, value: Any) -> list[Any]:
        return [value, self.other] if self.rank == 0 else [self.other, value]


def test_two_processes_draw_what_one_draws() -> None:
    contents = [f"prompt {n % 30}" for n in range(40)]
    one = [contents[i] for i in sample(contents, 12)]
    shares, hashes = (contents[::2], contents[1::2]), []
    for own in shares:
        hashes.append([hashlib.sha256(json.dumps(text).encode()).hexdigest() for text in own])
    drawn: dict[int, str] = {}
    for rank in (0, 1):
        process = OfTwo(rank, 2)
        object.__setattr__(process, "other", tuple(sorted(set(hashes[1 - rank]))[:12]))
        indices, places = share_sample(shares[rank], 12, process)
        assert places == sorted(places)
        assert not drawn.keys() & set(places)  # each prompt is in one process only
        drawn.update((place, shares[rank][i]) for i, place in zip(indices, places, strict=True))
    assert [drawn[place] for place in range(12)] == one
    assert share_sample(contents, 12, ONE_PROCESS)[1] == list(range(12))
