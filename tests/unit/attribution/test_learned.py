from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import tiny_models as factories

from truthgate_eval.attribution.direct_effect import direct_effects
from truthgate_eval.attribution.gradient import gate_gradients
from truthgate_eval.attribution.learned import LearnedGateConfig, learn_gate
from truthgate_eval.attribution.log_odds import AnswerDocument
from truthgate_eval.errors import ProbeError
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.inference import self_check

RIGHT, WRONG = 90, 91


def one_head_decides(layer: int, head: int) -> torch.nn.Module:
    """A Llama in which only one head's output reaches the difference of the two answers' logits.

    All other heads' columns of W_o are 0, the MLPs are 0, and the decisive head writes along the difference of
    the two answers' rows of the head.
    """
    model = factories.tiny_model("llama")
    with torch.no_grad():
        direction = model.lm_head.weight[RIGHT] - model.lm_head.weight[WRONG]
        for i, block in enumerate(model.model.layers):
            block.mlp.down_proj.weight.zero_()
            weight = block.self_attn.o_proj.weight
            weight.zero_()
            if i == layer:
                weight[:, head * 8 : (head + 1) * 8] = 3 * direction[:, None] * torch.randn(1, 8)
    return model


def documents(count: int, seed: int = 0) -> list[AnswerDocument]:
    rng = np.random.default_rng(seed)
    contexts = [tuple(rng.integers(3, 80, 6).tolist()) for _ in range(count)]
    return [
        AnswerDocument(((*context, RIGHT), (*context, WRONG)), (True, False), i)
        for i, context in enumerate(contexts)
    ]


def test_the_head_that_decides_is_first_by_gradient_direct_effect_and_learned_factor() -> None:
    model = one_head_decides(1, 2)
    layout = find_attention_layout(model)
    shared = self_check.load(model, layout.decoder)
    gradients, _ = gate_gradients(shared, layout, documents(12), site="pre")
    written = direct_effects(shared, layout, documents(12), site="pre")
    for found in (gradients, written):
        effect = np.abs(found.mean(axis=0))
        assert np.unravel_index(effect.argmax(), effect.shape) == (1, 2)
        assert effect[1, 2] > 100 * np.sort(effect.ravel())[-2]
    gate = learn_gate(
        shared, layout, documents(12), documents(8, seed=1), site="pre",
        config=LearnedGateConfig(penalty=0.1, lr=0.05, epochs=4),
    )  # fmt: skip
    change = np.abs(gate.values - 1)
    assert np.unravel_index(change.argmax(), change.shape) == (1, 2)
    assert gate.curve[gate.chosen] == min(gate.curve) < gate.curve[0]


def test_a_large_penalty_keeps_the_gate_at_one() -> None:
    model = factories.tiny_model("llama")
    layout = find_attention_layout(model)
    shared = self_check.load(model, layout.decoder)
    options = {"lr": 1e-3, "epochs": 3}
    free, tied = (
        learn_gate(
            shared, layout, documents(8), documents(8), config=LearnedGateConfig(penalty=penalty, **options)
        )
        for penalty in (0.0, 1e4)
    )
    assert np.abs(free.values - 1).max() > 2 * np.abs(tied.values - 1).max()
    assert len(free.training_curve) == len(free.curve) - 1 == 3


def test_an_epoch_that_does_not_help_is_not_chosen() -> None:
    model = factories.tiny_model("llama")
    layout = find_attention_layout(model)
    shared = self_check.load(model, layout.decoder)
    # The held-out documents ask for the opposite of the training documents.
    opposite = [AnswerDocument(d.sequences, (False, True), d.group) for d in documents(8)]
    gate = learn_gate(shared, layout, documents(8), opposite, config=LearnedGateConfig(patience=2, penalty=0))
    assert gate.chosen == 0 and (gate.values == 1).all() and len(gate.curve) == 3


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ProbeError, match="lr=0"):
        LearnedGateConfig(lr=0)
    with pytest.raises(ProbeError, match="penalty=-1"):
        LearnedGateConfig(penalty=-1)
