from __future__ import annotations

import pytest
import torch
from helpers import tiny_models as factories

from truthgate_eval.inference import self_check
from truthgate_eval.inference.batching import TokenBudget
from truthgate_eval.inference.loglikelihood import log_likelihoods
from truthgate_eval.inference.prefix_plan import plan_prefixes


def requests() -> list[tuple[list[int], list[int]]]:
    """(context, continuation): shared contexts, equal inputs split differently, long and short continuations."""
    tokens = torch.randint(3, 90, (400,), generator=torch.Generator().manual_seed(7)).tolist()
    pairs = []
    for i in range(40):
        context = tokens[:50] + tokens[50 + 5 * i : 56 + 5 * i + i % 3]
        pairs += [
            (context, [5]),
            (context, [6]),
            (context, [5, 9, 4]),
            ([*context, 5], [9, 4]),
            (context, [5, 9]),
        ]
    return [*pairs, ([3], tokens[:50]), pairs[0]]


@pytest.mark.parametrize("budget", [20, 10_000])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
def test_log_likelihoods_are_those_of_each_request_alone(name: str, budget: int) -> None:
    model = factories.tiny_model(name)
    shared, done = self_check.load(model), []
    assert any(group.prefix for group in plan_prefixes([context for context, _ in requests()]).groups)
    inputs = [((context + continuation)[:-1], continuation) for context, continuation in requests()]
    found = log_likelihoods(shared, inputs, budget=TokenBudget(budget), progress=done.append)
    for (input_ids, continuation), (value, greedy) in zip(inputs, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([input_ids])).logits[0, -len(continuation) :]
        logs = torch.log_softmax(logits, -1)
        expected = logs.gather(1, torch.tensor(continuation)[:, None]).sum()
        assert value == pytest.approx(float(expected), abs=1e-4)
        assert greedy == (logs.argmax(-1).tolist() == continuation)
    assert sum(done) == len(inputs)


def test_the_likeliest_continuation_is_called_so() -> None:
    model = factories.tiny_model("llama")
    best = int(model(torch.tensor([[5, 6, 7]])).logits[0, -1].argmax())
    found = log_likelihoods(
        self_check.load(model), [([5, 6, 7], [best]), ([5, 6, 7], [best - 1])], budget=TokenBudget(100)
    )
    assert [greedy for _, greedy in found] == [True, False] and found[0][0] > found[1][0]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (([5, 6], []), "request 1 has 0 tokens to score, and 2 of input"),
        (([5], [6, 7]), "request 1 has 2 tokens to score, and 1 of input"),
        (([], []), "request 1 has 0 tokens to score, and 0 of input"),
    ],
)
def test_requests_without_anything_to_score_are_refused(
    request_: tuple[list[int], list[int]], message: str
) -> None:
    model = self_check.load(factories.tiny_model("llama"))
    with pytest.raises(ValueError, match=message):
        log_likelihoods(model, [([5, 6], [7]), request_], budget=TokenBudget(100))
    assert log_likelihoods(model, [], budget=TokenBudget(100)) == []
