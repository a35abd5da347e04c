from __future__ import annotations

import tempfile

import peft
import pytest
import torch
import transformers as hf
from helpers import tiny_models as factories

from truthgate_eval.errors import AttentionLayoutError, GateError
from truthgate_eval.gating.attention_layout import find_attention_layout

NAMES = {
    "llama": "layers.1.self_attn.o_proj", "qwen2": "layers.1.self_attn.o_proj",
    "qwen3": "layers.1.self_attn.o_proj", "mistral": "layers.1.self_attn.o_proj",
    "gemma": "layers.1.self_attn.o_proj", "gpt2": "h.1.attn.c_proj", "gpt_neox": "layers.1.attention.dense",
    "opt": "layers.1.self_attn.out_proj", "bloom": "h.1.self_attention.dense",
    "falcon": "h.1.self_attention.dense", "phi": "layers.1.self_attn.dense", "mpt": "blocks.1.attn.out_proj",
    "gptj": "h.1.attn.out_proj", "mixtral": "layers.1.self_attn.o_proj",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_output_projection_is_found_under_any_name(name: str) -> None:
    layout = find_attention_layout(factories.tiny_model(name))
    assert layout.shape == (3, 4)
    assert layout.projections[1].name == NAMES[name]
    assert layout.head_width("post") == 8
    assert layout.head_width("pre") == (16 if name in ("qwen3", "gemma") else 8)


def test_a_vision_tower_is_not_found() -> None:
    model = factories.tiny_vision_model()  # its tower has as many layers and heads as its decoder
    layout = find_attention_layout(model)
    text = {id(module) for module in model.get_decoder().modules()}
    assert all(id(projection.module) in text for projection in layout.projections)
    assert layout.head_width("post") == 8


def test_a_lora_wrapper_is_found_and_not_the_layer_inside_it() -> None:
    config = peft.LoraConfig(target_modules=["o_proj", "q_proj"], r=2)
    layout = find_attention_layout(peft.get_peft_model(factories.tiny_model("llama"), config))
    assert isinstance(layout.projections[0].module, peft.tuners.lora.Linear)


def test_the_dry_pass_removes_its_hooks_and_keeps_the_training_mode() -> None:
    model = factories.tiny_model("llama").train()
    find_attention_layout(model)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_an_encoder_decoder_is_refused() -> None:
    config = hf.T5Config(d_model=16, num_layers=1, num_heads=2, d_ff=16, d_kv=8, vocab_size=32)
    with pytest.raises(AttentionLayoutError, match="encoder-decoder"):
        find_attention_layout(hf.T5ForConditionalGeneration(config))


def test_layers_without_attention_are_named() -> None:
    config = hf.MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=32, state_size=4)
    config.num_attention_heads = 2
    with pytest.raises(AttentionLayoutError, match=r"expected 2 layers .* found layers: 0 of 2"):
        find_attention_layout(hf.MambaForCausalLM(config))


def test_features_that_do_not_divide_into_heads_exclude_only_their_site() -> None:
    config = hf.Qwen3Config(
        hidden_size=30, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=16, vocab_size=32,
    )  # fmt: skip
    layout = find_attention_layout(hf.Qwen3ForCausalLM(config))
    assert layout.head_width("pre") == 8
    with pytest.raises(GateError, match="30 features and 4 heads"):
        layout.head_width("post")


def test_the_layout_of_a_model_on_two_devices_is_found() -> None:
    from accelerate import dispatch_model

    model = factories.tiny_model("llama")
    device_map = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "cpu",
                  "model.layers.2": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu",
                  "lm_head": "cpu"}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        dispatched = dispatch_model(model, device_map, main_device="cpu", offload_dir=folder)
        assert find_attention_layout(dispatched).shape == (3, 4)
