"""Tiny vision-language models with random weights, of transformers' own classes and with real processors.

Every language model has 3 layers of 4 heads (2 key-value heads) and hidden size 32, so that one score
artifact fits them all, as it does in a family. No download is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image

from helpers import tiny_vision_families
from helpers.tiny_vision_parts import (
    HEADS,
    LAYERS,
    LLAVA_TEMPLATE,
    QWEN_TEMPLATE,
    STRING_TEMPLATE,
    text_sizes,
    tokenizer,
)

__all__ = [
    "HEADS",
    "LAYERS",
    "LLAVA_TEMPLATE",
    "STRING_TEMPLATE",
    "make",
    "random_image",
    "save",
    "tokenizer",
]

NAMES = ("llava", "llava_next", "qwen2_5_vl", "qwen2_5_omni")
_QWEN = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
_OMNI = [
    "<|im_start|>", "<|im_end|>", "<|vision_bos|>", "<|vision_eos|>", "<|IMAGE|>", "<|VIDEO|>", "<|AUDIO|>",
    "<|audio_bos|>", "<|audio_eos|>",
]  # fmt: skip


def _clip() -> hf.CLIPVisionConfig:
    return hf.CLIPVisionConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=14, intermediate_size=32
    )  # fmt: skip


_CLIP_IMAGES = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
_LLAVA = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_QWEN_VISION = {
    "depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32, "patch_size": 14,
    "spatial_merge_size": 2, "window_size": 56, "fullatt_block_indexes": [1],
}  # fmt: skip
_QWEN_IMAGES = {"size": {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}}


def llava() -> tuple[Any, Any]:
    words = tokenizer(["<image>"])
    config = hf.LlavaConfig(
        vision_config=_clip(), text_config=hf.LlamaConfig(**text_sizes(len(words))),
        image_token_index=words.convert_tokens_to_ids("<image>"), image_seq_length=4,
    )  # fmt: skip
    images = hf.CLIPImageProcessor(**_CLIP_IMAGES)
    processor = hf.LlavaProcessor(images, words, **_LLAVA, chat_template=LLAVA_TEMPLATE)
    return hf.LlavaForConditionalGeneration(config), processor


def llava_next() -> tuple[Any, Any]:
    words = tokenizer(["<image>"])
    grid = [[28, 56], [56, 28], [56, 56]]
    config = hf.LlavaNextConfig(
        vision_config=_clip(), text_config=hf.LlamaConfig(**text_sizes(len(words))), image_grid_pinpoints=grid,
        image_token_index=words.convert_tokens_to_ids("<image>"), image_seq_length=4,
    )  # fmt: skip
    images = hf.LlavaNextImageProcessor(**_CLIP_IMAGES, image_grid_pinpoints=grid)
    processor = hf.LlavaNextProcessor(images, words, **_LLAVA, chat_template=LLAVA_TEMPLATE)
    return hf.LlavaNextForConditionalGeneration(config), processor


def qwen2_5_vl() -> tuple[Any, Any]:
    words = tokenizer(_QWEN)
    ids = dict(zip(_QWEN, words.convert_tokens_to_ids(_QWEN), strict=True))
    config = hf.Qwen2_5_VLConfig(
        text_config=text_sizes(len(words), rope_parameters=_ROPE), vision_config=_QWEN_VISION,
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    template = QWEN_TEMPLATE.replace("START-PICTURE-END", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = hf.Qwen2_5_VLProcessor(
        hf.Qwen2VLImageProcessor(**_QWEN_IMAGES), words, hf.Qwen2VLVideoProcessor(), chat_template=template
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def _omni_config(words: Any) -> Any:
    ids = dict(zip(_OMNI, words.convert_tokens_to_ids(_OMNI), strict=True))
    thinker = {
        "text_config": text_sizes(len(words), rope_parameters=_ROPE, tie_word_embeddings=False),
        "vision_config": _QWEN_VISION,
        "audio_config": {
            "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "output_dim": 32,
            "num_mel_bins": 8, "n_window": 4, "max_source_positions": 16,
        },
        "image_token_index": ids["<|IMAGE|>"], "video_token_index": ids["<|VIDEO|>"],
        "audio_token_index": ids["<|AUDIO|>"], "audio_start_token_id": ids["<|audio_bos|>"],
        "audio_end_token_id": ids["<|audio_eos|>"], "vision_start_token_id": ids["<|vision_bos|>"],
        "vision_end_token_id": ids["<|vision_eos|>"],
    }  # fmt: skip
    talker = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
        "intermediate_size": 16, "embedding_size": 32, "vocab_size": 8448, "rope_parameters": _ROPE,
        "pad_token_id": 0,  # transformers 5.0 needs it
    }  # fmt: skip
    wave = {
        "dit_config": {
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 16, "emb_dim": 8,
            "enc_dim": 8, "enc_emb_dim": 8, "enc_channels": [8, 8, 8, 8, 24], "enc_attention_channels": 4,
            "enc_se_channels": 4, "num_embeds": 32, "mel_dim": 8,
        },
        "bigvgan_config": {"mel_dim": 8, "upsample_initial_channel": 64},
    }  # fmt: skip
    return hf.Qwen2_5OmniConfig(thinker_config=thinker, talker_config=talker, token2wav_config=wave)


def qwen2_5_omni() -> tuple[Any, Any]:
    """The full model with its talker, as the hub's checkpoint has it; the tests use its thinker."""
    named = {
        "image_token": "<|IMAGE|>", "audio_token": "<|AUDIO|>", "video_token": "<|VIDEO|>",
        "vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>",
        "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>",
    }  # fmt: skip
    words = tokenizer(_OMNI, **named)
    template = QWEN_TEMPLATE.replace("START-PICTURE-END", "<|vision_bos|><|IMAGE|><|vision_eos|>")
    processor = hf.Qwen2_5OmniProcessor(
        hf.Qwen2VLImageProcessor(**_QWEN_IMAGES), hf.Qwen2VLVideoProcessor(),
        hf.WhisperFeatureExtractor(feature_size=8), words, chat_template=template,
    )  # fmt: skip
    return hf.Qwen2_5OmniForConditionalGeneration(_omni_config(words)), processor


def paligemma() -> tuple[Any, Any]:
    """Its processor appends a line break to the prompt; the answer is a suffix of its own."""
    images = hf.SiglipImageProcessor(size={"height": 28, "width": 28})
    images.image_seq_length = 4
    processor = hf.PaliGemmaProcessor(images, tokenizer(["<image>"], image_token="<image>"))
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 28, "patch_size": 14, "intermediate_size": 32,
    }  # fmt: skip
    config = hf.PaliGemmaConfig(
        text_config=text_sizes(len(processor.tokenizer), model_type="gemma", head_dim=8, tie_word_embeddings=False),
        vision_config=vision, image_token_index=processor.image_token_id, projection_dim=32,
        tie_word_embeddings=False,  # where they are tied, a random model repeats its last token
    )  # fmt: skip
    return hf.PaliGemmaForConditionalGeneration(config), processor


_BLIP_VISION = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    "intermediate_size": 32,
}  # fmt: skip


def _blip_config(cls: type[Any], words: Any) -> Any:
    return cls(
        vision_config=_BLIP_VISION,
        qformer_config={
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
            "encoder_hidden_size": 16, "vocab_size": len(words),
        },
        text_config=text_sizes(len(words), model_type="llama"), num_query_tokens=4,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip


def instructblip() -> tuple[Any, Any]:
    """Its processor puts image tokens before the text by itself; a second text encoder reads the question."""
    images = hf.BlipImageProcessor(size={"height": 28, "width": 28})
    processor = hf.InstructBlipProcessor(images, tokenizer([]), tokenizer(["<image>"]), num_query_tokens=4)
    config = _blip_config(hf.InstructBlipConfig, processor.tokenizer)
    return hf.InstructBlipForConditionalGeneration(config), processor


def blip_2() -> tuple[Any, Any]:
    """As InstructBLIP without the second text encoder."""
    processor = hf.Blip2Processor(
        hf.BlipImageProcessor(size={"height": 28, "width": 28}), tokenizer([]), num_query_tokens=4
    )
    return hf.Blip2ForConditionalGeneration(_blip_config(hf.Blip2Config, processor.tokenizer)), processor


def llava_onevision() -> tuple[Any, Any]:
    """Its processor needs the number of an image's tokens, which follows from the config."""
    words = tokenizer(["<image>", "<video>"])
    grid = [[28, 56], [56, 28], [56, 56]]
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 28, "patch_size": 14, "intermediate_size": 32,
    }  # fmt: skip
    image, video = words.convert_tokens_to_ids(["<image>", "<video>"])
    config = hf.LlavaOnevisionConfig(
        vision_config=vision, text_config=text_sizes(len(words), model_type="qwen2"), image_grid_pinpoints=grid,
        image_token_index=image, video_token_index=video, vision_feature_layer=-1,
    )  # fmt: skip
    images = hf.LlavaOnevisionImageProcessor(size={"height": 28, "width": 28}, image_grid_pinpoints=grid)
    processor = hf.LlavaOnevisionProcessor(
        images, words, hf.LlavaOnevisionVideoProcessor(), num_image_tokens=4, chat_template=LLAVA_TEMPLATE,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


_MAKERS = {
    "llava": llava, "llava_next": llava_next, "qwen2_5_vl": qwen2_5_vl, "qwen2_5_omni": qwen2_5_omni,
    "paligemma": paligemma, "instructblip": instructblip, "blip_2": blip_2, "llava_onevision": llava_onevision,
}  # fmt: skip
ALL_NAMES = (*_MAKERS, *tiny_vision_families.MAKERS)


def make(name: str) -> tuple[Any, Any]:
    """A random model and its processor; the weights are large enough that texts differ."""
    torch.manual_seed(0)
    model, processor = {**_MAKERS, **tiny_vision_families.MAKERS}[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval(), processor


def save(folder: Path, name: str) -> str:
    """Save a tiny model with its processor, as a folder that both harnesses load; its path."""
    model, processor = make(name)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def random_image(seed: int = 0, size: tuple[int, int] = (60, 40)) -> Image.Image:
    """A small image of noise; every seed gives another."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def save_smollm2_llava(folder: Path) -> str:
    """A LLaVA whose language model is the packaged SmolLM2-135M; its vision tower is tiny and untrained."""
    from truthgate_eval.packaged.smollm2 import SMOLLM2, resolve_smollm2

    base = resolve_smollm2(SMOLLM2)
    words = hf.AutoTokenizer.from_pretrained(base)
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    words.padding_side = "left"
    language = hf.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    language.resize_token_embeddings(len(words), mean_resizing=False)
    torch.manual_seed(0)
    config = hf.LlavaConfig(
        vision_config=_clip(), text_config=language.config,
        image_token_index=words.convert_tokens_to_ids("<image>"), image_seq_length=4,
    )  # fmt: skip
    model = hf.LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    model.save_pretrained(folder)
    images = hf.CLIPImageProcessor(**_CLIP_IMAGES)
    hf.LlavaProcessor(images, words, **_LLAVA, chat_template=LLAVA_TEMPLATE).save_pretrained(folder)
    return str(folder)
