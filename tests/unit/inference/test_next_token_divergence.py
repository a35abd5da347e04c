from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import tiny_models as factories

from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate import attach, make_gate
from truthgate_eval.gating.strength import find_strength
from truthgate_eval.inference import self_check
from truthgate_eval.inference.next_token_divergence import NextTokenDivergence

PROMPTS = [(1, 5, 6, 7), (1, 5, 6), (1, 5, 6, 7), (1, 30, 31, 32, 33)]


def test_the_divergence_equals_the_one_of_the_models_own_logits() -> None:
    model = factories.tiny_model("llama")
    measure = NextTokenDivergence(self_check.load(model), PROMPTS, batch_size=2)
    assert measure.mean() == pytest.approx(0, abs=1e-6)

    def distributions() -> list[torch.Tensor]:
        with torch.no_grad():
            return [model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1) for prompt in PROMPTS]

    before = distributions()
    scores = np.random.default_rng(0).normal(size=(3, 4))
    with attach(model, make_gate(scores, lam=0.4, norm="centered")):
        after = distributions()
        expected = np.mean([float((p.exp() * (p - q)).sum()) for p, q in zip(before, after, strict=True)])
        assert measure.mean() == pytest.approx(expected, rel=1e-3)


def test_a_strength_reaches_its_divergence_on_fresh_prompts() -> None:
    model = factories.tiny_model("qwen2")
    layout = find_attention_layout(model)
    rng = np.random.default_rng(1)
    prompts = rng.integers(3, 90, (400, 6)).tolist()
    scores = rng.normal(size=(3, 4))
    shared = self_check.load(model, layout.decoder)
    chosen, fresh = (NextTokenDivergence(shared, own) for own in (prompts[:200], prompts[200:]))

    def divergence(lam: float) -> float:
        with attach(model, make_gate(scores, lam=lam, norm="centered"), layout=layout):
            return chosen.mean()

    lam, reached = find_strength(divergence, 0.05)
    assert reached == pytest.approx(0.05, rel=0.011)
    with attach(model, make_gate(scores, lam=lam, norm="centered"), layout=layout):
        assert fresh.mean() == pytest.approx(0.05, rel=0.15)
