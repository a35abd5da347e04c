from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import tiny_models as factories

from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.equal_strength import find_equal_strength
from truthgate_eval.gating.gate import attach, make_gate
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.scores import TruthScores
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


def test_the_divergence_on_the_first_prompts_is_that_of_these_alone() -> None:
    model = factories.tiny_model("llama")
    shared = self_check.load(model, find_attention_layout(model).decoder)
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, 90, (40, 6)).tolist()
    everything = NextTokenDivergence(shared, prompts)
    few = everything.of_first(8)
    with attach(model, make_gate(rng.normal(size=(3, 4)), lam=0.4, norm="centered")):
        assert torch.allclose(few.of_each(), everything.of_each()[:8], atol=1e-6)
    assert everything.of_first(40) is everything  # a search would run them all twice


def test_a_search_runs_all_prompts_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = factories.tiny_model("llama")
    shared = self_check.load(model, find_attention_layout(model).decoder)
    prompts = np.random.default_rng(0).integers(3, 90, (200, 6)).tolist()
    divergence = NextTokenDivergence(shared, prompts)
    sizes: list[int] = []
    real = NextTokenDivergence.of_each

    def counting(self: NextTokenDivergence) -> torch.Tensor:
        sizes.append(len(self.prompts))
        return real(self)

    monkeypatch.setattr(NextTokenDivergence, "of_each", counting)
    config = GateConfig.parse(TruthScores(np.random.default_rng(1).normal(size=(3, 4))), lam="kl:0.05")
    found = find_equal_strength(config, model, "tiny", divergence, tokenizer=None)
    assert found.target is not None and found.target.reached == pytest.approx(0.05, rel=0.011)
    assert 1 <= sizes.count(200) <= 3 and sizes[0] == 32
