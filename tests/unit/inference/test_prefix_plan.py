"""Whatever the sequences, a plan computes each of them, and shared prefixes once."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from truthgate_eval.inference.prefix_plan import PrefixPlan, plan_prefixes

# A small alphabet and a few long stems, so that sequences share prefixes in every way.
TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=12)
STEMS = st.sampled_from([[], [7] * 40, [7] * 40 + [8] * 30, [9] * 300])
SEQUENCES = st.lists(st.builds(lambda stem, own: stem + own, STEMS, TOKENS), min_size=0, max_size=30)


def expand(plan: PrefixPlan) -> dict[int, tuple[list[int], list[int], list[list[int]]]]:
    """For each distinct sequence its tokens, positions, and the tokens that each of its tokens sees."""
    sequences = {}
    for group in plan.groups:
        for prompt in group.prompts:
            tokens, segments, positions = prompt.token_ids, prompt.segment_ids, prompt.position_ids
            assert len(tokens) == len(segments) == len(positions) == len(prompt)
            for suffix, sequence_id in enumerate(prompt.sequence_ids):
                columns = prompt.columns(suffix).tolist()
                seen = [
                    [tokens[k] for k in range(len(prompt)) if k <= q and segments[k] in (0, segments[q])]
                    for q in columns
                ]
                assert sequence_id not in sequences
                sequences[sequence_id] = (
                    [*group.prefix, *(tokens[column] for column in columns)],
                    [
                        *range(len(group.prefix)),
                        *(len(group.prefix) + positions[column] for column in columns),
                    ],
                    [[*group.prefix, *tokens_seen] for tokens_seen in seen],
                )
    return sequences


@settings(max_examples=300, deadline=None)
@given(SEQUENCES, st.booleans())
def test_a_plan_computes_every_sequence(sequences: list[list[int]], share: bool) -> None:
    plan = plan_prefixes(sequences, share=share)
    expanded = expand(plan)
    assert len(expanded) == plan.num_distinct == len(set(map(tuple, sequences)))
    for sequence, distinct_id in zip(sequences, plan.distinct_ids, strict=True):
        tokens, positions, seen = expanded[distinct_id]
        assert tokens == sequence and positions == list(range(len(sequence)))
        prefix = len(sequence) - len(seen)
        assert seen == [sequence[: prefix + i + 1] for i in range(len(seen))]
    assert plan.num_tokens <= sum(map(len, set(map(tuple, sequences))))


@settings(max_examples=100, deadline=None)
@given(SEQUENCES, st.data())
def test_a_shared_prefix_ends_before_the_first_position_that_is_read(
    sequences: list[list[int]], data: st.DataObject
) -> None:
    first_read = [data.draw(st.integers(0, len(sequence) - 1)) for sequence in sequences]
    plan = plan_prefixes(sequences, first_read_positions=first_read)
    lengths = {i: len(g.prefix) for g in plan.groups for prompt in g.prompts for i in prompt.sequence_ids}
    assert all(lengths[i] <= first for i, first in zip(plan.distinct_ids, first_read, strict=True))


def test_a_sequence_given_twice_is_read_from_the_earlier_position() -> None:
    prompts = [[1] * 200 + [2 + i] * 40 for i in range(100)]
    last = [len(prompt) - 1 for prompt in prompts]
    assert [len(group.prefix) for group in plan_prefixes(prompts, first_read_positions=last).groups] == [200]
    twice = plan_prefixes([*prompts, prompts[7]], first_read_positions=[*last, 150])
    assert [len(group.prefix) for group in twice.groups] == [150] and twice.num_distinct == 100


def test_every_sequence_keeps_a_token_of_its_own() -> None:
    long = list(range(500))
    plan = plan_prefixes([long[: 100 + i] for i in range(20)])
    assert all(prompt.suffixes and all(prompt.suffixes) for group in plan.groups for prompt in group.prompts)


def test_pairs_share_a_packed_prompt_and_many_prompts_a_shared_prefix() -> None:
    instruction = list(range(1000, 1500))
    pairs = [[i] * 100 + [5, answer] for i in range(30) for answer in (1, 2)]
    plan = plan_prefixes(pairs)
    assert plan.num_tokens == 30 * 103 and {
        len(prompt.suffixes) for g in plan.groups for prompt in g.prompts
    } == {2}
    instructed = plan_prefixes([instruction + pair for pair in pairs])
    assert [len(group.prefix) for group in instructed.groups] == [500]
    assert instructed.num_tokens == 500 + 30 * 103


def test_questions_after_one_prefix_are_cut_into_packed_prompts_of_bounded_length() -> None:
    plan = plan_prefixes([[1] * 100 + [2 + i] * 20 for i in range(50)])
    prompts = [prompt for group in plan.groups for prompt in group.prompts]
    assert plan.num_tokens < 0.35 * 50 * 120 and max(len(prompt) for prompt in prompts) < 1000


def test_an_empty_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="sequence 1 is empty"):
        plan_prefixes([[1], []])


@pytest.mark.parametrize("shape", ["nested", "pairs", "equal"])
def test_planning_is_about_linear(shape: str) -> None:
    def seconds(n: int) -> float:
        rng = np.random.default_rng(0)
        if shape == "nested":
            sequences = [[1] * (1 + i) for i in range(n // 10)]
        elif shape == "pairs":
            sequences = [
                [*[3] * 50, *base, a] for base in rng.integers(0, 99, (n // 2, 60)).tolist() for a in (1, 2)
            ]
        else:
            sequences = [[4] * 100] * n
        times = []
        for _ in range(3):  # the smallest: a busy machine only ever adds
            start = time.process_time()
            plan_prefixes(sequences)
            times.append(time.process_time() - start)
        return min(times)

    seconds(200)
    # Eight times the sequences: 8 times the time, 64 times if it were quadratic. Tokens of nested sequences
    # grow with the square of their number already; so may the time.
    bound = 200 if shape == "nested" else 30
    assert seconds(8000) < bound * max(seconds(1000), 0.005)


def test_ten_thousand_halueval_documents_are_planned_in_seconds(shared_data: Path) -> None:
    lines = (shared_data / "halueval" / "qa_data.jsonl").read_text().splitlines()
    sequences = []
    for line in lines:
        row = json.loads(line)
        context = f"Context:\n{row['knowledge']}\n\nQuestion: {row['question']}\nAnswer: "
        sequences += [list((context + row[key]).encode()) for key in ("right_answer", "hallucinated_answer")]
    start = time.process_time()
    plan = plan_prefixes(sequences)
    spent = time.process_time() - start
    assert len(sequences) == 20_000 and spent < 30
    assert plan.num_tokens < 0.65 * sum(map(len, sequences))


def test_a_shared_prefix_gets_a_pass_of_its_own_where_that_costs_little() -> None:
    """Eighteen questions about an image of 576 tokens: packed prompts on a GPU, a shared prefix on a CPU."""
    prompts = [[*range(100, 680), *range(20 * i, 20 * i + 20)] for i in range(18)]
    assert [len(group.prefix) for group in plan_prefixes(prompts, prefix_pass_cost=256).groups] == [0]
    assert [len(group.prefix) for group in plan_prefixes(prompts, prefix_pass_cost=32).groups] == [580]
    few = [[*range(100, 120), *range(20 * i, 20 * i + 20)] for i in range(12)]
    assert [len(group.prefix) for group in plan_prefixes(few, prefix_pass_cost=32).groups] == [0]
