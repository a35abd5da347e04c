"""A model that gives NaN gives no answers: the error names where that begins."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.tiny_models import tiny_model

from truthgate_eval.errors import ModelError
from truthgate_eval.inference import self_check
from truthgate_eval.inference.batching import TokenBudget
from truthgate_eval.inference.greedy import decode_greedily
from truthgate_eval.inference.loglikelihood import log_likelihoods
from truthgate_eval.inference.not_finite import first_not_finite
from truthgate_eval.inference.shared_prefix import SharedPrefixModel

PROMPTS = [[5, 6, 7, 8, number] for number in range(9, 13)]


def broken(layer: int, value: float = float("nan")) -> SharedPrefixModel:
    model: Any = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[layer].self_attn.o_proj.weight[0, 0] = value
    return SharedPrefixModel(model)


@pytest.mark.parametrize("layer", [0, 2])
def test_the_layer_is_named_and_no_answer_is_kept(layer: int) -> None:
    kept: list[int] = []
    name = rf"^model\.layers\.{layer}\.self_attn\.o_proj \(Linear\) gives NaN or infinite values"

    def keep(number: int, _answer: object) -> None:
        kept.append(number)

    with pytest.raises(ModelError, match=name):
        log_likelihoods(broken(layer), [(p, [3]) for p in PROMPTS], budget=TokenBudget(64), keep=keep)
    with pytest.raises(ModelError, match=name):
        decode_greedily(broken(layer), PROMPTS, max_new_tokens=3, budget=TokenBudget(64), keep=keep)
    assert kept == []


def test_the_self_check_names_it_before_the_first_request() -> None:
    """Else requests would take the harness's own path, which generates from NaN."""
    with pytest.raises(ModelError, match=r"^model\.layers\.1\.self_attn\.o_proj "):
        self_check.load(broken(1).model)


def test_what_becomes_nan_only_later_is_named_where_it_becomes_infinite() -> None:
    with pytest.raises(ModelError, match=r"^model\.layers\.1\.self_attn\.o_proj "):
        log_likelihoods(broken(1, float("inf")), [(PROMPTS[0], [3])], budget=TokenBudget(64))


def test_a_sound_model_has_no_such_module_and_keeps_no_hooks() -> None:
    model: Any = tiny_model("llama")
    assert first_not_finite(model, lambda: model(torch.tensor(PROMPTS))) is None
    assert not any(module._forward_hooks for module in model.modules())
