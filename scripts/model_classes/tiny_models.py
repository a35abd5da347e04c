"""Small random models of any class of transformers, made from the class's own config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from transformers.models.auto import modeling_auto

VOCABULARY = 128
HEADS = 4
LAYERS = 4
HIDDEN = 64
_MAX_PARAMETERS = 40_000_000

# Sizes by the names that configs give them. A name that a config does not have is left out.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "emb_dim", "dim_model", "out_hidden_size",
         "text_hidden_size", "adapter_in_dim", "adapter_out_dim", "text_embed_dim", "output_dim",
         "output_proj_dims", "adapter_input_size", "projector_hidden_size", "backbone_hidden_size",
         "audio_embed_dim", "projection_dim", "image_token_embed_dim", "num_embeddings"), HIDDEN),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "layers", "decoder_layers",
         "num_decoder_layers"), LAYERS),
    **dict.fromkeys(("encoder_layers", "depth"), 2),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads",
         "num_decoder_attention_heads", "attention_heads", "encoder_attention_heads"), HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "kv_channels", "attention_head_dim", "v_head_dim", "dim_head"), 16),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size",
         "shared_intermediate_size", "dim_ff"), 64),
    **dict.fromkeys(
        ("moe_intermediate_size", "expert_ffn_hidden_size", "moe_shared_expert_intermediate_size",
         "shared_expert_intermediate_size", "intermediate_size_mlp"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    "kv_lora_rank": 16,
    "q_lora_rank": 32,
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 256),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    "hidden_size_per_layer_input": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "image_size": 28,
    "patch_size": 14,
    "codebook_size": 32,
}  # fmt: skip
_HYBRID = ["linear_attention", "full_attention"] * (LAYERS // 2)
_SLIDING = ["sliding_attention", "full_attention"] * (LAYERS // 2)
_DENSE_AND_SPARSE = ["dense", "sparse"] * (LAYERS // 2)
_SHARED = ["linear_attention", "hybrid", "linear_attention", "hybrid"]
# Rotary sections (time, height, width) of classes whose default lies in the model's code, for heads of 16.
_SECTIONS: dict[str, Any] = {"mrope_section": [4, 2, 2]}
_SWA: dict[str, Any] = {"swa_num_attention_heads": HEADS, "swa_num_key_value_heads": 2, "swa_head_dim": 16}
_VOCABULARY_MAP = {"<image>": 3, "<boss>": 4, "<eoss>": 5} | {
    f"IMGIMG{'A' * (i + 1)}Z": 10 + i for i in range(4)
}
_VISION_TOKENIZER = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}
# What some config classes need beside small sizes.
_SPECIAL: dict[str, dict[str, Any]] = {
    "Apertus1p5Config": {"image_token_offset": 64, "audio_token_offset": 96},
    "Apertus1p5VisionTokenizerConfig": _VISION_TOKENIZER,
    "BailingHybridConfig": {"layer_types": _HYBRID},
    "BambaConfig": {"attn_layer_indices": [1, 3]},
    "BltConfig": {"encoder_hash_byte_group_vocab": 64, "patch_in_forward": False},
    "ChameleonConfig": {"vocabulary_map": _VOCABULARY_MAP},
    "ChameleonVQVAEConfig": _VISION_TOKENIZER,
    "CodeGenConfig": {"rotary_dim": 8},
    "CohereCompassTextConfig": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4, **_SECTIONS}}
    },
    "DbrxAttentionConfig": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0},
    "DeepseekOcr2TextConfig": {"mlp_layer_types": _DENSE_AND_SPARSE},
    "Dots1Config": {"n_shared_experts": 1},
    "Dots3NoteTextConfig": {"layer_types": ["full_attention"] * LAYERS, "per_layer_config": {}},
    "Dots3NoteVisionConfig": {"mlp_layer_types": ["dense"] * LAYERS, "per_layer_config": {}},
    "Emu3Config": {"vocabulary_map": _VOCABULARY_MAP},
    "Emu3VQVAEConfig": _VISION_TOKENIZER,
    "Ernie4_5_VLMoeTextConfig": {"rope_parameters": {"mrope_section": [3, 3, 2]}},
    "Gemma3nTextConfig": {
        "layer_types": _SLIDING, "num_kv_shared_layers": 2, "activation_sparsity_pattern": None,
        "intermediate_size": 64,
    },
    "Gemma3nVisionConfig": {"architecture": "resnet18"},
    "Gemma4TextConfig": {"layer_types": _SLIDING, "global_head_dim": 32, "head_dim": 16},
    "Gemma4UnifiedAssistantConfig": {"text_config": {"num_kv_shared_layers": LAYERS}},
    "Gemma4UnifiedTextConfig": {"layer_types": _SLIDING, "global_head_dim": 32, "head_dim": 16},
    "Glm4vMoeTextConfig": {"rope_parameters": {"mrope_section": [2, 1, 1]}},
    "Glm4vTextConfig": {"rope_parameters": _SECTIONS},
    "Glm5NextTextConfig": {"qk_rope_head_dim": 0, "head_dim": 0},
    "GlmOcrTextConfig": {"rope_parameters": _SECTIONS},
    "GPTJConfig": {"rotary_dim": 8},
    "GPTNeoConfig": {"attention_types": [[["global", "local"], 2]]},
    "Granite4VisionConfig": {"deepstack_layer_map": [[0, 0]], "downsample_rate": "1/2"},
    "GraniteMoeHybridConfig": {"layer_types": _HYBRID},
    "HunYuanVLTextConfig": {"rope_parameters": _SECTIONS},
    "IdeficsConfig": {"cross_layer_interval": 2},
    "Inkling2LoopTextConfig": _SWA,
    "Inkling2TextConfig": _SWA,
    "InklingTextConfig": _SWA,
    "JambaConfig": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "JanusVQVAEConfig": _VISION_TOKENIZER,
    "KimiLinearConfig": {"layer_types": _HYBRID},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
    "LongcatFlashConfig": {"head_dim": 8},
    "Mamba2Config": {"num_heads": 8},
    "Molmo2AdapterConfig": {"vision_feature_layer": [-1]},
    "MuseSparkAudioConfig": {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1]},
    "MuseSparkTextConfig": {"moe_hidden_size": 32},
    "NemotronH_Omni_Reasoning_V3_Config": {"vision_hidden_size": HIDDEN},
    "PaddleOCRTextConfig": {"rope_parameters": _SECTIONS},
    "Qwen2_5_VLTextConfig": {"rope_parameters": _SECTIONS},
    "Qwen2_5OmniTextConfig": {"rope_parameters": _SECTIONS},
    "Qwen2VLTextConfig": {"rope_parameters": _SECTIONS},
    "Qwen4ExpTextConfig": {
        "layer_types": ["linear_attention", "indexed_attention"] * (LAYERS // 2), "indexer_n_heads": 2,
        "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 16, "indexer_compress_ratio": 4,
    },
    "RadioConfig": {"video_temporal_patch_size": 2},
    "ReformerConfig": {
        "axial_pos_shape": [16, 16], "axial_pos_embds_dim": [32, 32], "attn_layers": ["local"] * LAYERS,
        "attention_head_size": 16, "feed_forward_size": 64, "local_attn_chunk_length": 16, "is_decoder": True,
    },
    "Step3p7TextConfig": {"sliding_window": 4, "layer_types": _SLIDING},
    "TimmWrapperConfig": {
        "architecture": "vit_tiny_patch16_224", "hidden_size": HIDDEN,
        "model_args": {"embed_dim": HIDDEN, "num_heads": HEADS, "depth": 1},
    },
    "UnlimitedOcrTextConfig": {"num_key_value_heads": HEADS},
    "WavTokenizerEncoderConfig": {"codebook_dim": HIDDEN},
    "XmodConfig": {"default_language": "en_XX"},
    "Zamba2Config": {"layers_block_type": _SHARED, "attention_head_dim": 32},
    "ZambaConfig": {"layers_block_type": _SHARED, "attention_head_dim": 32},
    "ZayaConfig": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}  # fmt: skip


def tiny_config(cls: type[Any], **special: Any) -> Any:
    """A config of that class with small sizes, its sub-configs too."""
    names = {field.name for field in dataclasses.fields(cls)}
    names |= {name for name, own in cls.attribute_map.items() if own not in _SIZES and own not in names}
    default = _default(cls)
    known = {} if default is None else vars(default)
    values = {name: _like(known.get(name), size) for name, size in _SIZES.items() if name in names}
    if "kv_lora_rank" in names:  # latent attention: every head has keys of its own, in widths of their own
        values.pop("head_dim", None)
        values["num_key_value_heads"] = HEADS
    special = _SPECIAL.get(cls.__name__, {}) | special
    values |= {name: value for name, value in special.items() if name not in (cls.sub_configs or {})}
    for name, sub in (cls.sub_configs or {}).items():
        sub = type(known.get(name)) if sub.__name__ == "AutoConfig" else sub
        if hasattr(sub, "attribute_map"):
            values[name] = tiny_config(sub, **special.get(name, {}))
    rope = known.get("rope_parameters")
    if isinstance(rope, dict) and "mrope_section" in rope and "rope_parameters" not in values:
        values["rope_parameters"] = _small_sections(rope, values)
    elif "mrope_section" in values.get("rope_parameters", {}):
        values["rope_parameters"] = {**(rope or {}), **values["rope_parameters"]}
    return cls(**values)


def _default(cls: type[Any]) -> Any:
    """The class's config with its own sizes, or None where there is none."""
    try:
        return cls()
    except Exception:  # some classes ask for a sub-config
        return None


def _like(default: Any, size: Any) -> Any:
    """A size in the form of a config's default: a list of as many where that is a list."""
    if isinstance(default, list | tuple) and not isinstance(size, list):
        return [size] * len(default)
    return size


def _small_sections(rope: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary parameters whose three sections (time, height, width) share half a small head."""
    width = values.get("qk_rope_head_dim", values.get("head_dim", HIDDEN // HEADS))
    half = int(width * rope.get("partial_rotary_factor", 1)) // 2
    side = half // 4
    return {**rope, "mrope_section": [half - 2 * side, side, side]}


def tiny_model(cls: type[Any]) -> Any:
    """A random model of a class; weights are large enough that logits differ between tokens.

    Raises:
        MemoryError: The class has sizes that are not in `_SIZES`, and is large.
    """
    config = tiny_config(cls.config_class)
    config._attn_implementation = "eager"
    if cls.__name__ in set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()):
        config.is_decoder = True
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in cls(config).parameters())
    if count > _MAX_PARAMETERS:
        raise MemoryError(f"{count / 1e6:.0f} million parameters with small sizes")
    torch.manual_seed(0)
    model = cls(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.float().eval()
