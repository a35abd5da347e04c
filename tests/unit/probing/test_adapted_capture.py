"""Activations of models that compute more than their text decoder does: adapters, and autocast."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from helpers import tiny_models as factories
from helpers import tiny_vision_models as factories_vlm

from truthgate_eval.errors import ModelError
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.inference import self_check
from truthgate_eval.inference.adapters import find_outer_adapter
from truthgate_eval.probing.capture import capture
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample
from truthgate_eval.probing.image_capture import capture_with_images
from truthgate_eval.vision.loading import LoadOptions, load_vlm

CAUSAL = "CAUSAL_LM"
INVOCATION = [5, 9]
OUTER: dict[str, Any] = {
    "prompt": lambda: peft.PromptTuningConfig(task_type=CAUSAL, num_virtual_tokens=4),
    "prefix": lambda: peft.PrefixTuningConfig(task_type=CAUSAL, num_virtual_tokens=4),
    "p-tuning": lambda: peft.PromptEncoderConfig(
        task_type=CAUSAL, num_virtual_tokens=4, encoder_hidden_size=8
    ),
    "activated lora": lambda: peft.LoraConfig(
        task_type=CAUSAL, r=2, target_modules=["q_proj", "v_proj"], alora_invocation_tokens=INVOCATION
    ),
}


def adapt(model: Any, config: peft.PeftConfig) -> Any:
    """A model with an adapter whose weights are random, and large enough to be seen."""
    torch.manual_seed(0)
    tuned = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter))
    return tuned.eval()


def adapted(config: peft.PeftConfig, dtype: torch.dtype = torch.float32) -> Any:
    """A tiny Llama with an adapter."""
    return adapt(factories.tiny_model("llama", dtype), config)


def sequences() -> list[list[int]]:
    """Sequences that share a prefix, of which some invoke the activated LoRA."""
    rng = np.random.default_rng(0)
    stem = rng.integers(10, factories.VOCABULARY, size=20).tolist()
    return [[*stem, *INVOCATION, 7], [*stem, *INVOCATION, 8, 9, 4], [*stem, 3], [6], stem[:9]]


def by_hand(model: Any, tokens: list[int] | None = None, **inputs: Any) -> np.ndarray:
    """One sequence alone through the whole model; the last token of each projection."""
    kept: list[torch.Tensor] = []
    hooks = [
        projection.module.register_forward_hook(lambda _, __, output: kept.append(output[0, -1]))
        for projection in find_attention_layout(model).projections
    ]
    with torch.no_grad():
        model(**(inputs or {"input_ids": torch.tensor([tokens])}))
    for hook in hooks:
        hook.remove()
    return torch.stack(kept).float().reshape(len(kept), 4, -1).numpy()


def count_hooks(model: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")  # peft 0.21 passes it
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OUTER)
def test_activations_are_those_of_the_model_with_its_adapter(name: str, dtype: torch.dtype) -> None:
    model = adapted(OUTER[name](), dtype)
    expected = np.stack([by_hand(model, tokens) for tokens in sequences()])
    with model.disable_adapter():
        without = np.stack([by_hand(model, tokens) for tokens in sequences()])
    tolerance = (1e-5 if dtype == torch.float32 else 2e-2) * np.abs(expected).max()
    assert np.abs(expected[0] - without[0]).max() > 5 * tolerance
    for batch_size in (1, 8):
        found = capture(model, sequences(), batch_size=batch_size)
        np.testing.assert_allclose(found, expected, atol=tolerance)


def test_only_adapters_that_act_outside_of_the_decoder_keep_prefixes_from_being_shared() -> None:
    for config in OUTER.values():
        assert not self_check.load(adapted(config())).supports_sharing
    inside = adapted(peft.LoraConfig(task_type=CAUSAL, r=2, target_modules=["q_proj", "o_proj"]))
    assert find_outer_adapter(inside) is None and find_outer_adapter(factories.tiny_model("llama")) is None
    assert self_check.load(inside).supports_sharing


def test_of_an_adapter_that_runs_the_decoder_twice_the_answering_pass_is_read(tmp_path: Path) -> None:
    lora = adapted(peft.LoraConfig(task_type=CAUSAL, r=2, target_modules=["q_proj"]))
    lora.save_pretrained(tmp_path / "expert")
    config = peft.XLoraConfig(
        task_type=CAUSAL, hidden_size=32, xlora_depth=1, adapters={"0": str(tmp_path / "expert")}
    )
    base = factories.tiny_model("llama")
    base.config.use_cache = False
    model = peft.get_peft_model(base, config).eval()
    passes = [by_hand(model, tokens) for tokens in sequences()]
    assert passes[0].shape == (6, 4, 8)
    expected, first = np.stack([own[3:] for own in passes]), np.stack([own[:3] for own in passes])
    found = capture(model, sequences(), batch_size=1)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(first - expected).max() > 1e-2 * np.abs(expected).max()


def test_capturing_leaves_the_hooks_of_an_adapter_as_they_were() -> None:
    model = adapted(OUTER["activated lora"]())
    before = count_hooks(model)
    capture(model, sequences())
    assert count_hooks(model) == before


def test_a_model_that_does_not_run_is_refused_in_one_line() -> None:
    config = peft.MultitaskPromptTuningConfig(task_type=CAUSAL, num_virtual_tokens=4, num_tasks=2)
    with pytest.raises(ModelError, match="does not run on text: ValueError: task_ids"):
        capture(adapted(config), sequences())


@pytest.mark.parametrize("site", ["post", "pre"])
def test_mixed_precision_is_that_of_the_answers(site: Any) -> None:
    model = factories.tiny_model("llama")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = np.stack([by_hand(model, tokens) for tokens in sequences()])
    exact = np.stack([by_hand(model, tokens) for tokens in sequences()])
    found = capture(model, sequences(), batch_size=1, mixed_precision_dtype=torch.bfloat16)
    assert np.abs(exact - expected).max() > 1e-3 * np.abs(expected).max()
    np.testing.assert_array_equal(found[3], expected[3])  # alone in its batch
    np.testing.assert_allclose(found, expected, atol=2e-2 * np.abs(expected).max())
    assert np.abs(found - expected).mean() < 0.5 * np.abs(exact - expected).mean()


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")  # peft 0.21 passes it
@pytest.mark.parametrize("name", ["prompt", "prefix", "activated lora"])
def test_activations_with_an_image_are_those_of_the_model_with_its_adapter(
    name: str, vlm_checkpoint: Callable[[str], str]
) -> None:
    plain = load_vlm(LoadOptions(vlm_checkpoint("llava"), device="cpu"))
    vlm = dataclasses.replace(plain, model=adapt(plain.model, OUTER[name]()))
    image, before = factories_vlm.random_image(), count_hooks(vlm.model.get_decoder())
    answers = [
        ProbeExample("What is it?", answer, True, 0, lambda: [image]) for answer in (" a black dog", " no")
    ]
    found = capture_with_images(vlm, ProbeDataset(answers, {}, {}, bare_questions=True), batch_size=2)
    assert count_hooks(vlm.model.get_decoder()) == before
    for activations, own in zip(found, answers, strict=True):
        expected = by_hand(vlm.model, **vlm.encode([vlm.prompt(own.context, 1) + own.answer], [[image]]))
        np.testing.assert_allclose(activations, expected, atol=1e-5 * np.abs(expected).max())
