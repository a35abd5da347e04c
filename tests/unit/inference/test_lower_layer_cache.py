"""What lower layers give is kept from gate to gate, and nothing else: answers are those without it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_models as factories
from helpers.prompts import asked, prompts
from torch import nn

from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate import attach, random_gate
from truthgate_eval.inference import lower_layer_cache as below
from truthgate_eval.inference.greedy import decode_greedily
from truthgate_eval.inference.loglikelihood import log_likelihoods
from truthgate_eval.inference.lower_layer_cache import cache_lower_layers
from truthgate_eval.inference.shared_prefix import SharedPrefixModel, TokenBudget
from truthgate_eval.vision.image_features import ImageFeatureCache
from truthgate_eval.vision.loading import LoadOptions, load_vlm
from truthgate_eval.vision.question_engine import ImageQuestionEngine
from truthgate_eval.vision.shared_prefix import SharedPrefixVLM


def answers(forward: SharedPrefixModel) -> list[Any]:
    """Generated tokens and log-likelihoods of the same prompts, exactly."""
    found: list[Any] = decode_greedily(forward, prompts(), max_new_tokens=6, budget=TokenBudget(300))
    scored = [(prompt, prompt[-1:]) for prompt in prompts()]
    return [*found, *log_likelihoods(forward, scored, budget=TokenBudget(300))]


def tokens_through(module: nn.Module) -> list[int]:
    """Grows by the tokens of every pass through a linear map."""
    seen: list[int] = []
    module.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[:-1].numel()))
    return seen


@pytest.mark.parametrize("name", factories.CONFIGS)
def test_every_gate_on_upper_layers_answers_as_without_keeping(name: str) -> None:
    model = factories.tiny_model(name)
    anatomy = find_attention_layout(model)
    plain, keeping = SharedPrefixModel(model), SharedPrefixModel(model)
    kept = cache_lower_layers(keeping, anatomy.layers[:2])
    assert kept is not None
    distinct = set()
    for seed in (None, 1, 2, None):
        gate = None if seed is None else attach(model, random_gate(anatomy.shape, seed=seed, layers=[2]))
        expected, found = answers(plain), answers(keeping)
        assert found == expected
        distinct.add(str(expected))
        if gate is not None:
            gate.remove()
    assert len(distinct) == 3 and kept.again > 20


def test_lower_layers_see_a_prompt_once_and_upper_ones_every_time() -> None:
    model = factories.tiny_model("llama")
    anatomy = find_attention_layout(model)
    forward = SharedPrefixModel(model)
    cache_lower_layers(forward, anatomy.layers[:2])
    seen = [tokens_through(projection.module) for projection in anatomy.projections]
    scored = [(prompt, prompt[-1:]) for prompt in prompts()]
    log_likelihoods(forward, scored, budget=TokenBudget(300))
    once = [sum(tokens) for tokens in seen]
    log_likelihoods(forward, scored, budget=TokenBudget(300))
    assert once[0] == once[2] > 300
    assert [sum(tokens) for tokens in seen] == [once[0], once[1], 2 * once[2]]


def test_nothing_is_kept_beyond_the_memory_and_what_is_not_kept_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = factories.tiny_model("llama")
    expected = answers(SharedPrefixModel(model))
    counts = []
    for free in (1 << 30, 400_000):
        monkeypatch.setattr(below, "_free", lambda _, free=free: free)
        forward = SharedPrefixModel(model)
        kept = cache_lower_layers(forward, find_attention_layout(model).layers[:2])
        assert kept is not None
        assert answers(forward) == answers(forward) == expected
        counts.append(kept.again)
        assert kept._held <= kept.memory == free // 4
    assert 0 < counts[1] < counts[0]


def stateful(model: Any) -> None:
    """A layer that gives something else each time it runs."""
    times: list[None] = []

    def drift(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        times.append(None)
        return output * (1 + len(times))

    model.model.layers[2].self_attn.register_forward_hook(lambda m, a, o: (drift(m, a, o[0]), *o[1:]))


def rewriting(model: Any) -> None:
    """An upper layer that writes into its input, which is what was kept."""

    def write(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        args[0].add_(1)

    model.model.layers[2].register_forward_pre_hook(write)


def side_road(model: Any) -> None:
    """An upper layer that takes more than hidden states from a lower one."""
    taken: list[torch.Tensor] = []
    model.model.layers[0].mlp.register_forward_hook(lambda _, __, output: taken.append(output))
    model.model.layers[2].mlp.register_forward_hook(lambda _, __, output: output + taken.pop())


@pytest.mark.parametrize("trouble", [stateful, rewriting, side_road])
def test_a_model_that_cannot_be_cut_is_run_whole_and_one_line_says_so(
    trouble: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    model = factories.tiny_model("llama")
    forward = SharedPrefixModel(model)
    trouble(model)
    with caplog.at_level(logging.WARNING):
        assert cache_lower_layers(forward, find_attention_layout(model).layers[:2]) is None
    assert forward.lower_layers is None
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("layers below the first gated one run anew for every gate of Llama")


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_questions_about_pictures_are_answered_as_without_keeping(
    name: str, vlm_checkpoint: Callable[[str], str]
) -> None:
    """Also where other pictures stand under the same ids, and where one is looked at again."""
    vlm = load_vlm(LoadOptions(vlm_checkpoint(name), device="cpu"))
    anatomy = find_attention_layout(vlm.model)
    plain, keeping = (ImageQuestionEngine(vlm, SharedPrefixVLM(vlm, anatomy.decoder)) for _ in range(2))
    kept = cache_lower_layers(keeping.forward, anatomy.layers[:1])
    assert kept is not None
    distinct = set()
    for part in (slice(None), slice(0, 4), slice(4, 8)):
        for seed in (1, 2):
            with attach(vlm.model, random_gate(anatomy.shape, seed=seed, layers=[1, 2])):
                expected, found = (
                    shared.generate(asked(shared)[part], max_new_tokens=8, batch_size=4)
                    for shared in (plain, keeping)
                )
            assert found == expected
            distinct.add(str(found))
        keeping.seen = ImageFeatureCache()
    assert len(distinct) > 4 and kept.again > 3


def test_without_lower_layers_or_a_shared_pass_nothing_is_kept() -> None:
    forward = SharedPrefixModel(factories.tiny_model("llama"))
    assert cache_lower_layers(forward, ()) is None and forward.lower_layers is None
    assert cache_lower_layers(None, find_attention_layout(forward.model).layers) is None


def test_a_replaced_forward_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """As accelerate's, which fetches offloaded weights."""
    model = factories.tiny_model("llama")
    first = find_attention_layout(model).layers[0]
    plain, calls = first.forward, []

    def fetching(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return plain(*args, **kwargs)

    first.forward = fetching  # type: ignore[method-assign]
    forward = SharedPrefixModel(model)
    cache_lower_layers(forward, find_attention_layout(model).layers[:2])
    before = np.sum(calls)
    assert answers(forward) == answers(forward)
    assert first.forward is fetching and np.sum(calls) > before
    assert "forward" not in find_attention_layout(model).layers[1].__dict__
