from __future__ import annotations

import random

from truthgate_eval.inference.prompt_sample import sample_prompts

CONTENTS = [["a question", n, "an image's key"] for n in range(200)]


def chosen(contents: list[list[object]], count: int) -> list[list[object]]:
    return [contents[i] for i in sample_prompts(contents, count)]


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
    assert sorted(sample_prompts(["x", "y", "x"], 64)) == [0, 1]
