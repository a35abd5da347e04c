"""With cached lower layers, answers under every gate are those without them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_models as factories
from helpers.prompts import image_prompts, prompts
from torch import nn

from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate import attach, random_gate
from truthgate_eval.inference import self_check
from truthgate_eval.inference.batching import TokenBudget
from truthgate_eval.inference.greedy import decode_greedily
from truthgate_eval.inference.loglikelihood import log_likelihoods
from truthgate_eval.inference.self_check import cache_lower_layers
from truthgate_eval.inference.shared_prefix import SharedPrefixModel
from truthgate_eval.vision import self_check as vision_self_check
from truthgate_eval.vision.image_features import ImageFeatureCache
from truthgate_eval.vision.loading import LoadOptions, load_vlm
from truthgate_eval.vision.question_engine import ImageQuestionEngine


def answers(model: SharedPrefixModel) -> list[Any]:
    """Generated tokens and log-likelihoods of the same prompts, exactly."""
    found: list[Any] = decode_greedily(model, prompts(), max_new_tokens=6, budget=TokenBudget(300))
    scored = [(prompt, prompt[-1:]) for prompt in prompts()]
    return [*found, *log_likelihoods(model, scored, budget=TokenBudget(300))]


def tokens_through(module: nn.Module) -> list[int]:
    """Grows by the tokens of every pass through a linear map."""
    counts: list[int] = []
    module.register_forward_hook(lambda _, args, __: counts.append(args[0].shape[:-1].numel()))
    return counts


@pytest.mark.parametrize("name", factories.CONFIGS)
def test_every_gate_on_upper_layers_answers_as_without_the_cache(name: str) -> None:
    model = factories.tiny_model(name)
    layout = find_attention_layout(model)
    plain, caching = self_check.load(model), self_check.load(model)
    cache = cache_lower_layers(caching, layout.layers[:2])
    assert cache is not None
    distinct = set()
    for seed in (None, 1, 2, None):
        gate = None if seed is None else attach(model, random_gate(layout.shape, seed=seed, layers=[2]))
        expected, found = answers(plain), answers(caching)
        assert found == expected
        distinct.add(str(expected))
        if gate is not None:
            gate.remove()
    assert len(distinct) == 3 and cache.num_reused > 20


def test_lower_layers_run_once_for_a_prompt_and_upper_ones_every_time() -> None:
    model = factories.tiny_model("llama")
    layout = find_attention_layout(model)
    shared = self_check.load(model)
    cache_lower_layers(shared, layout.layers[:2])
    counts = [tokens_through(projection.module) for projection in layout.projections]
    scored = [(prompt, prompt[-1:]) for prompt in prompts()]
    log_likelihoods(shared, scored, budget=TokenBudget(300))
    once = [sum(tokens) for tokens in counts]
    log_likelihoods(shared, scored, budget=TokenBudget(300))
    assert once[0] == once[2] > 300
    assert [sum(tokens) for tokens in counts] == [once[0], once[1], 2 * once[2]]


def test_the_cache_stays_within_its_memory_and_other_batches_are_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = factories.tiny_model("llama")
    expected = answers(self_check.load(model))
    counts = []
    for free in (1 << 30, 400_000):
        monkeypatch.setattr(self_check, "free_memory", lambda _, free=free: free)
        shared = self_check.load(model)
        cache = cache_lower_layers(shared, find_attention_layout(model).layers[:2])
        assert cache is not None
        assert answers(shared) == answers(shared) == expected
        counts.append(cache.num_reused)
        assert cache.used_memory <= cache.memory == free // 4
    assert 0 < counts[1] < counts[0]


def stateful(model: Any) -> None:
    """A layer whose output changes each time it runs."""
    times: list[None] = []

    def drift(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        times.append(None)
        return output * (1 + len(times))

    model.model.layers[2].self_attn.register_forward_hook(lambda m, a, o: (drift(m, a, o[0]), *o[1:]))


def rewriting(model: Any) -> None:
    """An upper layer that overwrites its input, which is the cached output."""

    def write(_module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        args[0].add_(1)

    model.model.layers[2].register_forward_pre_hook(write)


def extra_connection(model: Any) -> None:
    """An upper layer that reads more than hidden states from a lower one."""
    taken: list[torch.Tensor] = []
    model.model.layers[0].mlp.register_forward_hook(lambda _, __, output: taken.append(output))
    model.model.layers[2].mlp.register_forward_hook(lambda _, __, output: output + taken.pop())


@pytest.mark.parametrize("trouble", [stateful, rewriting, extra_connection])
def test_a_model_whose_lower_layers_cannot_be_cached_runs_whole_and_one_line_says_so(
    trouble: Callable[[Any], None], caplog: pytest.LogCaptureFixture
) -> None:
    model = factories.tiny_model("llama")
    shared = self_check.load(model)
    trouble(model)
    with caplog.at_level(logging.WARNING):
        assert cache_lower_layers(shared, find_attention_layout(model).layers[:2]) is None
    assert shared.lower_layers is None
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("layers below the first gated one run again for every gate of Llama")


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_questions_about_images_are_answered_as_without_the_cache(
    name: str, vlm_checkpoint: Callable[[str], str]
) -> None:
    """Also where other images have the same ids, and where an image is encoded again."""
    vlm = load_vlm(LoadOptions(vlm_checkpoint(name), device="cpu"))
    layout = find_attention_layout(vlm.model)
    plain, caching = (ImageQuestionEngine(vlm, vision_self_check.load(vlm, layout.decoder)) for _ in range(2))
    cache = cache_lower_layers(caching.model, layout.layers[:1])
    assert cache is not None
    distinct = set()
    for part in (slice(None), slice(0, 4), slice(4, 8)):
        for seed in (1, 2):
            with attach(vlm.model, random_gate(layout.shape, seed=seed, layers=[1, 2])):
                expected, found = (
                    engine.generate(image_prompts(engine)[part], max_new_tokens=8, batch_size=4)
                    for engine in (plain, caching)
                )
            assert found == expected
            distinct.add(str(found))
        caching.feature_cache = ImageFeatureCache()
    assert len(distinct) > 4 and cache.num_reused > 3


def test_without_layers_or_a_model_nothing_is_cached() -> None:
    shared = self_check.load(factories.tiny_model("llama"))
    assert cache_lower_layers(shared, ()) is None and shared.lower_layers is None
    assert cache_lower_layers(None, find_attention_layout(shared.model).layers) is None


def test_a_replaced_forward_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """As accelerate's, which fetches offloaded weights."""
    model = factories.tiny_model("llama")
    first = find_attention_layout(model).layers[0]
    plain, calls = first.forward, []

    def fetching(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return plain(*args, **kwargs)

    first.forward = fetching  # type: ignore[method-assign]
    shared = self_check.load(model)
    cache_lower_layers(shared, find_attention_layout(model).layers[:2])
    before = np.sum(calls)
    assert answers(shared) == answers(shared)
    assert first.forward is fetching and np.sum(calls) > before
    assert "forward" not in find_attention_layout(model).layers[1].__dict__
