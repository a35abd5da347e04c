"""More tiny vision-language models, of the classes that users run: their real processors, no download.

Sizes are those of `tiny_vision_models`. What is special in each is how its processor writes an image: tiles
with text between them (Idefics3, SmolVLM), rows that end in a token of their own (Pixtral), a token before
and after (InternVL), line breaks around (Gemma 3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers as hf

from helpers.tiny_vision_parts import (
    GEMMA_TEMPLATE,
    LINE_BREAKS,
    MISTRAL_TEMPLATE,
    QWEN_TEMPLATE,
    SMOLVLM_TEMPLATE,
    text_sizes,
    tokenizer,
)

# The image classes whose processors write more than a run of one token for an image.
TILED = ("idefics3", "idefics3_whole", "smolvlm", "smolvlm_whole")
_TILES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
_SMOLVLM = [
    "<|im_start|>", "<|im_end|>", "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>",
    *_TILES,
]  # fmt: skip
_QWEN = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_VISION = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 28, "patch_size": 7,
}  # fmt: skip
# transformers 5.20 needs a tile's number of tokens to be a multiple of the patch size, as it is in SmolVLM.
_TILED_VISION = {**_VISION, "image_size": 16, "patch_size": 4}


def _smolvlm_tokenizer() -> Any:
    """SmolVLM's tokens: a text begins with <|im_start|>, and an answer ends with <end_of_utterance>."""
    words = tokenizer(_SMOLVLM, merges=LINE_BREAKS)
    words.bos_token, words.eos_token, words.pad_token = "<|im_start|>", "<end_of_utterance>", "<|im_end|>"
    return words


def _tiled_config(config_class: type[Any], words: Any) -> Any:
    ids = {
        "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }  # fmt: skip
    return config_class(
        vision_config=_TILED_VISION, text_config=text_sizes(len(words), model_type="llama", **ids), scale_factor=2,
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip


def _tile_settings(*, split: bool) -> dict[str, Any]:
    """An image is scaled to 32 pixels and cut into tiles of 16, or is one tile."""
    return {
        "size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}, "do_image_splitting": split,
    }  # fmt: skip


def idefics3(*, split: bool = True) -> tuple[Any, Any]:
    """SmolVLM-256M-Instruct and -500M-Instruct are of this class."""
    words = _smolvlm_tokenizer()
    images = hf.Idefics3ImageProcessor(**_tile_settings(split=split))
    processor = hf.Idefics3Processor(images, words, image_seq_len=4, chat_template=SMOLVLM_TEMPLATE)
    return hf.Idefics3ForConditionalGeneration(_tiled_config(hf.Idefics3Config, words)), processor


def smolvlm(*, split: bool = True) -> tuple[Any, Any]:
    """SmolVLM2's class; its processor also reads videos."""
    words = _smolvlm_tokenizer()
    settings = _tile_settings(split=split)
    videos = hf.SmolVLMVideoProcessor(size={"longest_edge": 16}, max_image_size={"longest_edge": 16})
    processor = hf.SmolVLMProcessor(
        hf.SmolVLMImageProcessor(**settings), words, videos, image_seq_len=4, chat_template=SMOLVLM_TEMPLATE
    )
    return hf.SmolVLMForConditionalGeneration(_tiled_config(hf.SmolVLMConfig, words)), processor


def _qwen_ids(words: Any) -> dict[str, int]:
    ids = dict(zip(_QWEN, words.convert_tokens_to_ids(_QWEN), strict=True))
    return {
        "image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"],
    }  # fmt: skip


_QWEN_CHAT = QWEN_TEMPLATE.replace("START-PICTURE-END", "<|vision_start|><|image_pad|><|vision_end|>")


def qwen2_vl() -> tuple[Any, Any]:
    words = tokenizer(_QWEN)
    vision = {
        "depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14,
        "spatial_merge_size": 2,
    }  # fmt: skip
    config = hf.Qwen2VLConfig(
        text_config=text_sizes(len(words), rope_parameters=_ROPE), vision_config=vision, **_qwen_ids(words)
    )
    images = hf.Qwen2VLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 112 * 112})
    processor = hf.Qwen2VLProcessor(images, words, hf.Qwen2VLVideoProcessor(), chat_template=_QWEN_CHAT)
    return hf.Qwen2VLForConditionalGeneration(config), processor


def qwen3_vl() -> tuple[Any, Any]:
    """Its vision tower also adds to the hidden states after the decoder's first layers (DeepStack)."""
    words = tokenizer(_QWEN)
    vision = {
        "depth": 3, "hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 32,
        "patch_size": 14, "spatial_merge_size": 2, "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    text = text_sizes(len(words), head_dim=8, rope_parameters={**_ROPE, "mrope_interleaved": True})
    config = hf.Qwen3VLConfig(text_config=text, vision_config=vision, **_qwen_ids(words))
    images = hf.Qwen2VLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 112 * 112})
    videos = hf.Qwen3VLVideoProcessor(patch_size=14)
    processor = hf.Qwen3VLProcessor(images, words, videos, chat_template=_QWEN_CHAT)
    return hf.Qwen3VLForConditionalGeneration(config), processor


def internvl() -> tuple[Any, Any]:
    """InternVL3's class: an image is cut into up to four tiles, whose tokens are one run."""
    named = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    words = tokenizer(["<|im_start|>", "<|im_end|>", *named.values()], **named)
    config = hf.InternVLConfig(
        vision_config={**_VISION, "image_size": [28, 28], "patch_size": [7, 7]},
        text_config=text_sizes(len(words), model_type="qwen2"), image_seq_length=4,
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"), tie_word_embeddings=False,
    )  # fmt: skip
    images = hf.GotOcr2ImageProcessor(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=4)
    processor = hf.InternVLProcessor(
        images, words, hf.InternVLVideoProcessor(size={"height": 28, "width": 28}), image_seq_length=4,
        chat_template=QWEN_TEMPLATE.replace("START-PICTURE-END", "<IMG_CONTEXT>\n"),
    )  # fmt: skip
    return hf.InternVLForConditionalGeneration(config), processor


def gemma3() -> tuple[Any, Any]:
    """The tokens of an image attend to each other in both directions, and line breaks stand around them."""
    named = {
        "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"
    }  # fmt: skip
    words = tokenizer(["<start_of_turn>", "<end_of_turn>", *named.values()], merges=LINE_BREAKS, **named)
    text = text_sizes(len(words), model_type="gemma3_text", head_dim=8, query_pre_attn_scalar=8)
    config = hf.Gemma3Config(
        text_config={**text, "sliding_window": 512, "tie_word_embeddings": False},
        vision_config={**_VISION, "model_type": "siglip_vision_model"}, mm_tokens_per_image=4,
        boi_token_index=words.boi_token_id, eoi_token_index=words.eoi_token_id,
        image_token_index=words.image_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    images = hf.Gemma3ImageProcessor(size={"height": 28, "width": 28})
    processor = hf.Gemma3Processor(images, words, image_seq_length=4, chat_template=GEMMA_TEMPLATE)
    return hf.Gemma3ForConditionalGeneration(config), processor


_PIXTRAL = ["[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]
_PIXTRAL_VISION = {**_VISION, "model_type": "pixtral", "image_size": 112, "patch_size": 14}


def _pixtral_processor(words: Any, merge_size: int) -> Any:
    images = hf.PixtralImageProcessor(size={"longest_edge": 56}, patch_size={"height": 14, "width": 14})
    return hf.PixtralProcessor(
        images, words, patch_size=14, spatial_merge_size=merge_size, chat_template=MISTRAL_TEMPLATE
    )


def pixtral() -> tuple[Any, Any]:
    """A LLaVA with Pixtral's vision tower and processor: every row of an image ends in [IMG_BREAK]."""
    words = tokenizer(_PIXTRAL)
    config = hf.LlavaConfig(
        vision_config=_PIXTRAL_VISION, text_config=text_sizes(len(words), model_type="mistral", head_dim=8),
        image_token_index=words.convert_tokens_to_ids("[IMG]"), vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    return hf.LlavaForConditionalGeneration(config), _pixtral_processor(words, 1)


def mistral3() -> tuple[Any, Any]:
    """As Pixtral, with four patches to a token."""
    words = tokenizer(_PIXTRAL)
    config = hf.Mistral3Config(
        vision_config=_PIXTRAL_VISION, text_config=text_sizes(len(words), model_type="mistral", head_dim=8),
        image_token_index=words.convert_tokens_to_ids("[IMG]"), spatial_merge_size=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    return hf.Mistral3ForConditionalGeneration(config), _pixtral_processor(words, 2)


MAKERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "idefics3": idefics3,
    "idefics3_whole": lambda: idefics3(split=False),
    "smolvlm": smolvlm,
    "smolvlm_whole": lambda: smolvlm(split=False),
    "qwen2_vl": qwen2_vl,
    "qwen3_vl": qwen3_vl,
    "internvl": internvl,
    "gemma3": gemma3,
    "pixtral": pixtral,
    "mistral3": mistral3,
}
