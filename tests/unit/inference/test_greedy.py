from __future__ import annotations

import functools

import pytest
import torch
from helpers import tiny_models as factories
from helpers.prompts import prompts

from truthgate_eval.inference import self_check, tuning
from truthgate_eval.inference.batching import TokenBudget
from truthgate_eval.inference.greedy import decode_greedily
from truthgate_eval.inference.kv_cache import SharedPrefixCache
from truthgate_eval.inference.prefix_plan import plan_prefixes

EOS, NEW_TOKENS = 2, 12


@functools.cache
def generated(name: str) -> list[list[int]]:
    """What transformers' own `generate` adds to each prompt alone."""
    model = factories.tiny_model(name)
    answers = []
    for prompt in prompts():
        full = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=[EOS, 7], pad_token_id=0,
        )  # fmt: skip
        answers.append(full[0, len(prompt) :].tolist())
    return answers


@pytest.mark.parametrize("budget", [200, 10_000])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_answers_are_those_of_generate_on_each_prompt_alone(
    name: str, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "CACHE_GROWTH", 4)  # own keys and values grow more than once
    model = factories.tiny_model(name)
    shared = self_check.load(model)
    assert shared.supports_sharing and any(group.prefix for group in plan_prefixes(prompts()).groups)
    found = decode_greedily(
        shared, prompts(), max_new_tokens=NEW_TOKENS, budget=TokenBudget(budget), eos={EOS, 7}
    )
    assert found == generated(name)
    assert len({tuple(answer) for answer in found}) > 3


def test_an_answer_ends_where_the_caller_stops_it() -> None:
    shared = self_check.load(factories.tiny_model("llama"))
    free = decode_greedily(shared, prompts(), max_new_tokens=12, budget=TokenBudget(500))
    assert {len(answer) for answer in free} == {12}
    done: list[int] = []
    ended = decode_greedily(
        shared, prompts(), max_new_tokens=12, budget=TokenBudget(500),
        stopped=lambda tokens: tokens[-1] % 3 == 0, progress=done.append,
    )  # fmt: skip
    for whole, answer in zip(free, ended, strict=True):
        stop = next((i + 1 for i, token in enumerate(whole) if token % 3 == 0), 12)
        assert answer == whole[:stop]
    assert len({len(answer) for answer in ended}) > 3 and sum(done) == len(prompts())


@pytest.mark.parametrize("packed", [True, False])
def test_answers_are_the_same_in_packed_rows_and_in_rows_of_their_own(
    packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty questions after one prefix begin in packed rows; as answers end, they are unpacked."""
    tokens = torch.randint(3, 90, (400,), generator=torch.Generator().manual_seed(8)).tolist()
    questions = [tokens[:60] + tokens[60 + 5 * i : 64 + 5 * i + i % 3] for i in range(50)]
    shared, unpacked = self_check.load(factories.tiny_model("llama")), []
    unpack = SharedPrefixCache.unpack

    def counted(self: SharedPrefixCache) -> None:
        unpacked.append(len(self.rows))
        unpack(self)

    monkeypatch.setattr(tuning, "MIN_SLOT_OCCUPANCY", 0.0 if packed else 2.0)
    monkeypatch.setattr(SharedPrefixCache, "unpack", counted)
    found = decode_greedily(
        shared, questions, max_new_tokens=10, budget=TokenBudget(10_000),
        stopped=lambda tokens: tokens[-1] % 5 == 0,
    )  # fmt: skip
    assert (max(unpacked, default=0) < 10) if packed else (unpacked[0] == 50)
    for prompt, answer in zip(questions, found, strict=True):
        whole = shared.model.generate(
            torch.tensor([prompt]), max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(prompt) :].tolist()
        assert answer == whole[: len(answer)]
    assert len({len(answer) for answer in found}) > 3
