from __future__ import annotations

import functools

import factories
import pytest
import torch

from truthgate_eval.decoding import greedy
from truthgate_eval.forward import TokenBudget, TreeForward
from truthgate_eval.prefix_tree import plan

EOS = 2


def prompts() -> list[list[int]]:
    """Prompts behind one instruction, in related pairs, alone, equal, and one inside another."""
    draw = torch.randint(3, 90, (700,), generator=torch.Generator().manual_seed(5)).tolist()
    instruction, rest = draw[:60], draw[60:]
    behind = [instruction + rest[7 * i : 7 * i + 3 + i % 5] for i in range(70)]
    return [*behind, behind[3], *(rest[i : i + 4] for i in range(6)), [5], [5, 6], [5, 6, 7]]


@functools.cache
def generated(name: str) -> list[list[int]]:
    """What transformers' own `generate` adds to each prompt alone."""
    model = factories.tiny_model(name)
    answers = []
    for prompt in prompts():
        full = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=36, do_sample=False, eos_token_id=[EOS, 7], pad_token_id=0,
        )  # fmt: skip
        answers.append(full[0, len(prompt) :].tolist())
    return answers


@pytest.mark.parametrize("budget", [200, 10_000])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_answers_are_those_of_generate_on_each_prompt_alone(name: str, budget: int) -> None:
    model = factories.tiny_model(name)
    forward = TreeForward(model)
    assert forward.shares and any(group.trunk for group in plan(prompts()).groups)
    found = greedy(forward, prompts(), max_new_tokens=36, budget=TokenBudget(budget), eos={EOS, 7})
    assert found == generated(name)
    assert len({tuple(answer) for answer in found}) > 3


def test_an_answer_ends_where_it_is_told_to() -> None:
    forward = TreeForward(factories.tiny_model("llama"))
    free = greedy(forward, prompts(), max_new_tokens=12, budget=TokenBudget(500))
    assert {len(answer) for answer in free} == {12}
    done: list[int] = []
    ended = greedy(
        forward, prompts(), max_new_tokens=12, budget=TokenBudget(500),
        stopped=lambda tokens: tokens[-1] % 3 == 0, progress=done.append,
    )  # fmt: skip
    for whole, answer in zip(free, ended, strict=True):
        stop = next((i + 1 for i, token in enumerate(whole) if token % 3 == 0), 12)
        assert answer == whole[:stop]
    assert len({len(answer) for answer in ended}) > 3 and sum(done) == len(prompts())
