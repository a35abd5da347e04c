from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers as hf
from helpers import small_decoder
from helpers import tiny_models as factories

from truthgate_eval.errors import AttentionLayoutError, GateError, ModelError
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate import Gate, attach, fold

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
    # transformers 5.24 gives Mamba `layer_types`.
    none = r"no layer of MambaConfig is attention: they are|expected 2 layers .* found layers: 0 \(layer 0: no attention"
    with pytest.raises(AttentionLayoutError, match=none):
        find_attention_layout(hf.MambaForCausalLM(config))


def test_layers_without_attention_in_a_config_that_does_not_say_so_are_named() -> None:
    model = small_decoder.Model([torch.nn.Identity() for _ in range(3)])
    for layer in model.decoder.layers:
        layer.mixer = layer._modules.pop("self_attn")
        layer.self_attn = layer.mixer.forward
    with pytest.raises(
        AttentionLayoutError, match=r"expected 3 layers .* found layers: 0 \(layer 0: no attention block\)"
    ):
        find_attention_layout(model)


def test_features_that_do_not_divide_into_heads_exclude_only_their_site() -> None:
    config = hf.Qwen3Config(
        hidden_size=30, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=16, vocab_size=32,
    )  # fmt: skip
    layout = find_attention_layout(hf.Qwen3ForCausalLM(config))
    assert layout.head_width("pre") == 8
    with pytest.raises(GateError, match="has 30 features and this model 4 heads"):
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


_SMALL = {"hidden_size": 16, "num_attention_heads": 4, "vocab_size": 32, "intermediate_size": 16}


def jetmoe() -> Any:
    return hf.JetMoeForCausalLM(
        hf.JetMoeConfig(
            hidden_size=16, num_hidden_layers=2, num_key_value_heads=2, kv_channels=4, vocab_size=32,
            intermediate_size=16, num_local_experts=2, num_experts_per_tok=2, pad_token_id=0,
        )
    )  # fmt: skip


def sliced_bloom() -> Any:
    """Computes W_o in slices of its weight, so that the module of W_o does not run."""
    return hf.BloomForCausalLM(
        hf.BloomConfig(
            hidden_size=16, n_layer=2, n_head=4, vocab_size=32, pretraining_tp=2, slow_but_exact=True
        )
    )


@pytest.mark.parametrize(("make", "last"), [(jetmoe, "kv_proj"), (sliced_bloom, "query_key_value")])
def test_another_linear_map_is_not_taken_for_the_output_projection(make: Any, last: str) -> None:
    with pytest.raises(AttentionLayoutError, match=rf"\.0\.self_attention\.{last} is the last linear map"):
        find_attention_layout(make())


def test_a_block_that_ends_in_a_normalization_is_accepted() -> None:
    model = hf.BertLMHeadModel(hf.BertConfig(**_SMALL, num_hidden_layers=2, is_decoder=True)).eval()
    layout = find_attention_layout(model)
    assert [p.name for p in layout.projections] == [
        f"encoder.layer.{i}.attention.output.dense" for i in (0, 1)
    ]


def test_the_decoders_heads_and_layers_are_taken_where_the_encoders_differ() -> None:
    config = hf.BartConfig(
        d_model=16, encoder_layers=1, decoder_layers=3, encoder_attention_heads=2, decoder_attention_heads=4,
        encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=32, is_decoder=True, is_encoder_decoder=False,
    )  # fmt: skip
    assert find_attention_layout(hf.BartForCausalLM(config)).shape == (3, 4)


def jamba() -> Any:
    return hf.JambaForCausalLM(
        hf.JambaConfig(
            **_SMALL, num_hidden_layers=4, num_key_value_heads=2, attn_layer_period=2, attn_layer_offset=1,
            num_experts=2, use_mamba_kernels=False, pad_token_id=0,
        )
    )  # fmt: skip


def qwen3_next() -> Any:
    """Its recurrent layers end in a projection of the same widths as its attention layers."""
    kinds = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
    return hf.Qwen3NextForCausalLM(
        hf.Qwen3NextConfig(
            **_SMALL, num_hidden_layers=4, num_key_value_heads=2, head_dim=4, layer_types=kinds, num_experts=2,
            num_experts_per_tok=1, moe_intermediate_size=8, shared_expert_intermediate_size=8,
            linear_key_head_dim=4, linear_value_head_dim=4, linear_num_key_heads=4, linear_num_value_heads=4,
            pad_token_id=0,
        )
    )  # fmt: skip


@pytest.mark.parametrize("make", [jamba, qwen3_next])
@pytest.mark.parametrize("site", ["post", "pre"])
def test_of_a_hybrid_the_attention_layers_are_gated_and_no_others(make: Any, site: Any) -> None:
    torch.manual_seed(0)
    model = make().eval()
    layout = find_attention_layout(model)
    assert layout.shape == (2, 4) and layout.layer_numbers == (1, 3) and len(layout.layers) == 4
    gate = Gate(np.random.default_rng(0).uniform(0, 2, (2, 4)), site)
    tokens = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        plain = model(tokens).logits
        with attach(model, gate):
            gated = model(tokens).logits
        for row, number in enumerate((1, 3)):  # rows or columns of W_o, by hand
            weight = model.get_decoder().layers[number].self_attn.o_proj.weight
            factors = torch.from_numpy(gate.values[row]).repeat_interleave(4)
            weight.mul_(factors[:, None] if site == "post" else factors)
        expected = model(tokens).logits
    assert not torch.allclose(plain, expected, atol=1e-4)
    torch.testing.assert_close(gated, expected)


def test_a_model_without_any_attention_layer_names_its_kinds_of_layers() -> None:
    model = small_decoder.Model(layer_types=["linear_attention", "conv", "conv"])
    with pytest.raises(AttentionLayoutError, match=r"is attention: they are conv, linear_attention$"):
        find_attention_layout(model)


def test_the_decoder_is_found_where_a_class_calls_its_head_so() -> None:
    model = hf.ModernBertDecoderForCausalLM(
        hf.ModernBertDecoderConfig(
            **_SMALL, num_hidden_layers=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1,
            sep_token_id=2,
        )
    )  # fmt: skip
    layout = find_attention_layout(model)
    assert layout.decoder is model.model
    assert [p.name for p in layout.projections] == ["layers.0.attn.Wo", "layers.1.attn.Wo"]


def test_layers_that_attend_to_an_image_only_are_named_as_the_reason() -> None:
    config = hf.MllamaConfig(
        text_config={
            **_SMALL, "num_hidden_layers": 3, "num_key_value_heads": 2, "cross_attention_layers": [1],
            "pad_token_id": 0, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        vision_config={"hidden_size": 16, "num_hidden_layers": 1, "num_global_layers": 1, "attention_heads": 2,
                       "intermediate_size": 16, "image_size": 28, "patch_size": 14, "vision_output_dim": 32,
                       "intermediate_layers_indices": [0]},
    )  # fmt: skip
    model = hf.MllamaForConditionalGeneration(config)
    with pytest.raises(AttentionLayoutError, match=r"layer 1: cross_attn attends to an image"):
        find_attention_layout(model)


def test_a_decoder_that_does_not_run_on_text_is_named_with_its_reason() -> None:
    model = small_decoder.Model()

    def fail(*_: object, **__: object) -> None:
        raise TypeError("an image, please\nthe rest")

    model.decoder.layers[1].forward = fail  # type: ignore[method-assign]
    with pytest.raises(AttentionLayoutError) as error:
        find_attention_layout(model)
    assert str(error.value) == "Decoder does not run on two tokens of text: TypeError: an image, please"


@pytest.mark.parametrize("reason", [AttributeError("none"), NotImplementedError("none")])
def test_a_model_without_a_decoder_is_named(reason: Exception) -> None:
    model = small_decoder.Model()

    def fail() -> Any:
        raise reason

    model.get_decoder = fail  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="Model has no text decoder: none"):
        find_attention_layout(model)


def test_a_config_of_several_decoders_is_named() -> None:
    model = small_decoder.Model()

    def several(decoder: bool) -> Any:
        raise ValueError("Multiple valid text configs were found")

    model.config.get_text_config = several
    with pytest.raises(AttentionLayoutError, match="Model: Multiple valid text configs were found"):
        find_attention_layout(model)


@pytest.mark.parametrize("number", [None, [4, 2, 4]])
def test_a_config_without_one_number_of_heads_is_named(number: Any) -> None:
    with pytest.raises(AttentionLayoutError, match="does not say one num_attention_heads for all layers"):
        find_attention_layout(small_decoder.Model(num_attention_heads=number))


def test_a_number_of_heads_that_each_layer_has_for_itself_is_named() -> None:
    class PerLayer:
        """As transformers' heterogeneous configs, which raise a RuntimeError."""

        num_hidden_layers = 3

        @property
        def num_attention_heads(self) -> int:
            raise RuntimeError("'num_attention_heads' is a per-layer attribute")

        def get_text_config(self, decoder: bool) -> Any:
            return self

    model = small_decoder.Model()
    model.config = PerLayer()
    with pytest.raises(AttentionLayoutError, match="'num_attention_heads' is a per-layer attribute"):
        find_attention_layout(model)


@pytest.mark.parametrize("states_count", [True, False])
def test_a_block_of_another_number_of_heads_than_the_config_says_is_refused(states_count: bool) -> None:
    """Inkling has `swa_num_attention_heads` heads in its sliding layers; Llama's blocks state head_dim only."""
    model = small_decoder.Model(num_attention_heads=2)
    if not states_count:
        for layer in model.decoder.layers:
            del layer.self_attn.num_heads
    with pytest.raises(AttentionLayoutError, match=r"layers\.0\.self_attn\.o_proj .* of 4 heads, .* says 2"):
        find_attention_layout(model)


def test_an_input_that_is_not_the_heads_side_by_side_excludes_only_site_pre() -> None:
    """DeepSeek-V4 projects groups of heads down before W_o."""

    class Grouped(small_decoder.Attention):
        def __init__(self) -> None:
            super().__init__(width=8)
            self.v_head_dim = 4

    layout = find_attention_layout(small_decoder.Model([Grouped() for _ in range(3)]))
    assert layout.head_width("post") == 4
    with pytest.raises(GateError, match=r"o_proj has 32 input features and not 4 heads of 4; use site=post"):
        layout.head_widths("pre")


@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("folded", [False, True])
def test_layers_of_different_head_widths_are_gated_live_and_folded(site: Any, folded: bool) -> None:
    """Gemma 4 has heads of 256 features in some layers and of 512 in others."""
    widths = (4, 8, 4)
    model = small_decoder.Model([small_decoder.Attention(width) for width in widths])
    layout = find_attention_layout(model)
    assert layout.head_widths("pre") == widths and layout.head_width("pre") == 8
    assert layout.head_widths("post") == (4, 4, 4)
    gate = Gate(np.random.default_rng(0).uniform(0, 2, (3, 4)), site)
    tokens = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        plain = model(tokens)
        reference = small_decoder.Model([small_decoder.Attention(width) for width in widths])
        for layer, g, width in zip(
            reference.decoder.layers, torch.from_numpy(gate.values), widths, strict=True
        ):
            projection = layer.self_attn.o_proj
            if site == "post":
                projection.weight.mul_(g.repeat_interleave(4)[:, None])
                projection.bias.mul_(g.repeat_interleave(4))
            else:
                projection.weight.mul_(g.repeat_interleave(width))
        expected = reference(tokens)
        if folded:
            fold(model, gate)
            found = model(tokens)
        else:
            with attach(model, gate):
                found = model(tokens)
    assert not torch.allclose(plain, expected, atol=1e-3)
    torch.testing.assert_close(found, expected)
