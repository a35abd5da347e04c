"""A model without weights has the attention layout of the model with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from helpers import tiny_models, tiny_vision_models

from truthgate_eval.errors import ModelError
from truthgate_eval.export.skeleton import build_skeleton
from truthgate_eval.gating.attention_layout import AttentionLayout, find_attention_layout


def described(layout: AttentionLayout) -> list[Any]:
    heads = [(p.name, p.in_features, p.out_features, p.head_dim) for p in layout.projections]
    return [layout.shape, layout.layer_numbers, len(layout.layers), heads]


@pytest.mark.parametrize("name", {**tiny_models.CONFIGS, **tiny_models.MORE_CONFIGS})
def test_a_skeleton_of_a_language_model_has_the_layout_of_the_model(name: str) -> None:
    model = tiny_models.tiny_model(name)
    skeleton = build_skeleton(model.config, "text")
    assert type(skeleton) is type(model)
    assert described(find_attention_layout(skeleton)) == described(find_attention_layout(model))


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl", "paligemma", "blip_2"])
def test_a_skeleton_of_a_vision_language_model_has_the_layout_of_the_model(name: str) -> None:
    model, _ = tiny_vision_models.make(name)
    skeleton = build_skeleton(model.config, "image")
    assert described(find_attention_layout(skeleton)) == described(find_attention_layout(model))


def test_a_skeleton_of_a_model_of_seven_billion_parameters_takes_no_memory() -> None:
    config = hf.LlamaConfig()  # the sizes of Llama-7B
    skeleton = build_skeleton(config, "text")
    assert sum(p.numel() for p in skeleton.parameters()) > 6.7e9
    assert sum(p.untyped_storage().nbytes() for p in skeleton.parameters()) < 20e6


def test_building_one_leaves_the_random_numbers_and_the_default_dtype_alone() -> None:
    config = tiny_models.CONFIGS["llama"]()
    config.dtype = torch.bfloat16
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    skeleton = build_skeleton(config, "text")
    assert torch.equal(torch.rand(1), expected) and torch.get_default_dtype() == torch.float32
    assert {p.dtype for p in skeleton.parameters()} == {torch.float32}


def test_a_model_of_another_kind_is_refused_in_one_line() -> None:
    with pytest.raises(ModelError, match="a clip model cannot be built") as error:
        build_skeleton(hf.CLIPConfig(), "text")
    assert "\n" not in str(error.value)
