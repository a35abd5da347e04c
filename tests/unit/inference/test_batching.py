"""Batches keep to a number of tokens, which shrinks where memory ends."""

from __future__ import annotations

import itertools

import pytest
import torch

from truthgate_eval.inference.batching import TokenBudget
from truthgate_eval.inference.prefix_plan import PackedPrompt

CPU = torch.device("cpu")


def test_a_batch_size_means_as_many_tokens_as_the_longest_sequences_have() -> None:
    sequences = [[3] * n for n in (4, 10, 7)]
    assert TokenBudget.for_batch_size(8, sequences, CPU).tokens == 80
    assert TokenBudget.for_batch_size(8, sequences, CPU, max_new_tokens=5).tokens == 120
    assert TokenBudget.for_batch_size(8, [], CPU).tokens == 8
    assert TokenBudget.for_batch_size("auto", sequences, CPU, max_new_tokens=5).tokens == 4096
    assert TokenBudget.for_batch_size("auto", sequences, torch.device("cuda")).tokens == 16384


def test_new_tokens_count_for_every_suffix() -> None:
    prompts = [PackedPrompt((1, 2), ((3,), (4,)), (0, 1)), PackedPrompt((), ((5,),), (2,))]
    assert TokenBudget(4).next_batch_size(prompts) == 1
    assert TokenBudget(5).next_batch_size(prompts) == 2
    assert TokenBudget(10).next_batch_size(prompts, max_new_tokens=2) == 1
    assert TokenBudget(11).next_batch_size(prompts, max_new_tokens=2) == 2


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_batches_keep_to_the_budget_and_shrink_where_memory_ends(error: type[BaseException]) -> None:
    many = [PackedPrompt((), ((3,) * n,), (n,)) for n in range(1, 30)]
    done: list[list[int]] = []
    budget = TokenBudget(64)

    def run(batch: list[PackedPrompt]) -> None:
        if sum(map(len, batch)) > 40:
            raise error
        done.append([prompt.sequence_ids[0] for prompt in batch])

    budget.run_batches(many, run)
    assert sorted(itertools.chain(*done)) == list(range(1, 30)) and budget.tokens < 64


def test_other_errors_are_not_swallowed() -> None:
    def fail(_: list[PackedPrompt]) -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        TokenBudget(64).run_batches([PackedPrompt((), ((3,), (4,)), (0, 1))], fail)


def test_a_packed_prompt_too_large_for_memory_is_split_by_its_suffixes() -> None:
    done: list[tuple[int, ...]] = []

    def run(batch: list[PackedPrompt]) -> None:
        if sum(map(len, batch)) > 6:
            raise torch.OutOfMemoryError
        done.append(batch[0].sequence_ids)

    prompt = PackedPrompt((1, 2), ((3,), (4,), (5,), (6,), (7,)), (0, 1, 2, 3, 4))
    TokenBudget(100).run_batches([prompt], run)
    assert sorted(itertools.chain(*done)) == [0, 1, 2, 3, 4] and len(done) > 1
