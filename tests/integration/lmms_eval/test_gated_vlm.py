"""The gate on vision-language models against a computation by hand, on every supported class."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from helpers import tiny_vision_models as factories_vlm
from helpers.plain_model import ScaledByHand
from helpers.tiny_vision_models import HEADS, LAYERS

from truthgate_eval.errors import ScoresError
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.lmms_eval.model import GatedVLM
from truthgate_eval.probing.capture import capture

Folder = Callable[[str], str]


@pytest.fixture
def scores(tmp_path: Path) -> str:
    values = np.random.default_rng(0).uniform(0.5, 1.0, (LAYERS, HEADS))
    return str(TruthScores(values, metadata={"model": "the base"}).save(tmp_path / "base.npz"))


def language_layers(model: Any) -> Any:
    """The language model's layers, by attribute names and not by `find_attention_layout`."""
    return model.model.language_model.layers


def gated_by_hand(model: Any, scores: str, lam: float, site: str) -> Any:
    model = copy.deepcopy(model)
    values = TruthScores.load(scores).scores.astype(np.float64)
    low, high = values.min(1, keepdims=True), values.max(1, keepdims=True)
    gate = 1 + lam * (values - low) / (high - low + 1e-6)
    for row, layer in zip(gate, language_layers(model), strict=True):
        layer.self_attn.o_proj = ScaledByHand(layer.self_attn.o_proj, row, site)
    return model


def inputs_of(gated: GatedVLM) -> Any:
    prompts = [gated.vlm.prompt("Is there a dog?", 1), gated.vlm.prompt("Which one?", 2)]
    images = [
        [factories_vlm.random_image(0)],
        [factories_vlm.random_image(1, (70, 30)), factories_vlm.random_image(2)],
    ]
    return gated.vlm.encode(prompts, images)


def logits(model: Any, inputs: Any) -> torch.Tensor:
    """Logits at all tokens but padding."""
    with torch.no_grad():
        return model(**inputs).logits[inputs["attention_mask"].bool()]


def load(folder: str, **arguments: Any) -> GatedVLM:
    return GatedVLM(folder, device="cpu", **{"scores": "none", **arguments})


@pytest.mark.parametrize("mode", ["live", "folded"])
@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("name", factories_vlm.NAMES)
def test_gate_equals_the_computation_by_hand(
    name: str, site: str, mode: str, vlm_checkpoint: Folder, scores: str
) -> None:
    plain = load(vlm_checkpoint(name))
    gated = load(vlm_checkpoint(name), scores=scores, lam=0.7, norm="minmax", site=site, mode=mode)
    inputs = inputs_of(plain)
    expected = logits(gated_by_hand(plain.vlm.model, scores, 0.7, site), inputs)
    torch.testing.assert_close(logits(gated.vlm.model, inputs), expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(expected, logits(plain.vlm.model, inputs), atol=1e-2)


@pytest.mark.parametrize("name", factories_vlm.NAMES)
def test_lam_zero_equals_the_vanilla_model(name: str, vlm_checkpoint: Folder, scores: str) -> None:
    plain, gated = load(vlm_checkpoint(name)), load(vlm_checkpoint(name), scores=scores, lam=0)
    inputs = inputs_of(plain)
    assert torch.equal(logits(plain.vlm.model, inputs), logits(gated.vlm.model, inputs))


@pytest.mark.parametrize("mode", ["live", "folded"])
@pytest.mark.parametrize("name", factories_vlm.NAMES)
def test_the_gate_leaves_the_vision_tower_alone(
    name: str, mode: str, vlm_checkpoint: Folder, scores: str
) -> None:
    plain = load(vlm_checkpoint(name)).vlm.model
    gated = load(vlm_checkpoint(name), scores=scores, lam=0.7, mode=mode)
    model = gated.vlm.model
    expected, changed = plain.state_dict(), []
    for key, value in model.state_dict().items():
        if not torch.equal(value, expected[key]):
            changed.append(key)
    projections = [f"model.language_model.layers.{n}.self_attn.o_proj.weight" for n in range(LAYERS)]
    assert changed == (projections if mode == "folded" else [])
    hooked = [name for name, module in model.named_modules() if module._forward_hooks]
    assert all(name.startswith("model.language_model.layers.") for name in hooked)
    inputs = inputs_of(gated)
    wanted = {k: inputs[k] for k in ("pixel_values", "image_sizes", "image_grid_thw") if k in inputs}
    for one, other in zip(features(plain, wanted), features(model, wanted), strict=True):
        assert torch.equal(one, other)


def features(model: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
    with torch.no_grad():
        found = model.get_image_features(**inputs).pooler_output
    return list(found)


def base_of(child: Any, name: str) -> Any:
    """A language model with the weights of the child's decoder: its base."""
    shape = child.config.get_text_config()
    kind = (hf.LlamaConfig, hf.LlamaForCausalLM) if name.startswith("llava") else (hf.Qwen2Config, hf.Qwen2ForCausalLM)  # fmt: skip
    sizes = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
    )
    config = kind[0](
        vocab_size=shape.vocab_size, rms_norm_eps=shape.rms_norm_eps, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_parameters["rope_theta"]},
        **{size: getattr(shape, size) for size in sizes},
    )  # fmt: skip
    base = kind[1](config).eval()
    base.model.load_state_dict(child.model.language_model.state_dict())
    base.lm_head.load_state_dict(child.lm_head.state_dict())
    return base


@pytest.mark.parametrize("name", factories_vlm.NAMES)
def test_a_base_models_scores_gate_its_child_and_change_text_alike(
    name: str, vlm_checkpoint: Folder, scores: str
) -> None:
    child = load(vlm_checkpoint(name), scores=scores, lam=0.7, norm="centered")
    base = base_of(load(vlm_checkpoint(name)).vlm.model, name)
    inputs = child.vlm.encode([child.vlm.prompt("only text here")], [[]])
    ungated = logits(base, {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]})
    handle = child.gate_settings.apply(base, "the base")
    assert handle is not None
    same = logits(base, {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]})
    torch.testing.assert_close(logits(child.vlm.model, inputs), same, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(same, ungated, atol=1e-2)
    assert (
        find_attention_layout(base).shape == find_attention_layout(child.vlm.model).shape == (LAYERS, HEADS)
    )


@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("name", factories_vlm.NAMES)
def test_a_childs_activations_on_text_equal_its_bases(name: str, site: str, vlm_checkpoint: Folder) -> None:
    child = load(vlm_checkpoint(name)).vlm.model
    sequences = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16]]
    expected = capture(base_of(child, name), sequences, site=site)
    np.testing.assert_allclose(capture(child, sequences, site=site), expected, atol=1e-5)


def test_scores_of_another_family_are_refused_with_both_shapes(
    vlm_checkpoint: Folder, tmp_path: Path
) -> None:
    other = TruthScores(np.ones((4, 8)), metadata={"model": "stranger"}).save(tmp_path / "other.npz")
    with pytest.raises(ScoresError, match=r"stranger have 4 layers x 8 heads, but .* has 3 layers x 4 heads"):
        load(vlm_checkpoint("llava"), scores=str(other), lam=1)


def test_the_papers_norm_for_multimodal_models_is_the_default(vlm_checkpoint: Folder, scores: str) -> None:
    gated = load(vlm_checkpoint("llava"), scores=scores, lam=0.3)
    assert gated.gate_settings.norm == "minmax"
    assert gated.gate_handle is not None
    assert gated.gate_handle.gate.values.min() == 1.0
