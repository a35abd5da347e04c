"""Tiny language models with random weights, of transformers' own classes; each is made in milliseconds."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

VOCABULARY = 96
_COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GQA = {**_COMMON, "num_key_value_heads": 2}
_GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 128}
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

# Qwen3 and Gemma have heads x head_dim that is not the hidden size; GPT-2 has Conv1D.
CONFIGS: dict[str, Any] = {
    "llama": lambda: hf.LlamaConfig(**_GQA),
    "qwen2": lambda: hf.Qwen2Config(**_GQA),
    "qwen3": lambda: hf.Qwen3Config(**_GQA, head_dim=16),
    "mistral": lambda: hf.MistralConfig(**_GQA),
    "gemma": lambda: hf.GemmaConfig(**_GQA, head_dim=16),
    "gpt2": lambda: hf.GPT2Config(**_GPT2, **_TOKENS),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**_COMMON),
}
MORE_CONFIGS: dict[str, Any] = {
    "opt": lambda: hf.OPTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, ffn_dim=48, vocab_size=VOCABULARY,
        max_position_embeddings=128, word_embed_proj_dim=32, **_TOKENS,
    ),
    "bloom": lambda: hf.BloomConfig(hidden_size=32, n_layer=3, n_head=4, vocab_size=VOCABULARY, **_TOKENS),
    "falcon": lambda: hf.FalconConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, vocab_size=VOCABULARY, **_TOKENS
    ),
    "phi": lambda: hf.PhiConfig(**_GQA),
    "mpt": lambda: hf.MptConfig(d_model=32, n_heads=4, n_layers=3, vocab_size=VOCABULARY, max_seq_len=128),
    "gptj": lambda: hf.GPTJConfig(**_GPT2, rotary_dim=4, **_TOKENS),
    "mixtral": lambda: hf.MixtralConfig(**_GQA, num_local_experts=2),
    "gemma2": lambda: hf.Gemma2Config(**_GQA, head_dim=16),
    "gemma3": lambda: hf.Gemma3TextConfig(**_GQA, head_dim=16),
}  # fmt: skip


def tiny_model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A random causal language model; weights large enough that logits differ between tokens."""
    torch.manual_seed(0)
    config = {**CONFIGS, **MORE_CONFIGS}[name]()
    model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            # Biases start at zero in most classes: a test could not tell one that is left out.
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype).eval()


def prompts(seed: int = 0) -> torch.Tensor:
    """[2, 7] token ids without special tokens."""
    return torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(seed))


def tiny_vision_model() -> Any:
    """A random LLaVA whose language model has the same shape as the tiny Llama."""
    torch.manual_seed(0)
    vision = hf.CLIPVisionConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=14,
        intermediate_size=32,
    )  # fmt: skip
    text = CONFIGS["llama"]()
    config = hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=VOCABULARY - 1)
    return hf.LlavaForConditionalGeneration(config).eval()


def tiny_tokenizer() -> Any:
    """A byte-level tokenizer with a chat template: every text becomes its bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>"]
    symbols = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    return fast


def save_tiny_checkpoint(folder: Any, name: str = "llama", **changes: Any) -> str:
    """Save a tiny model with its tokenizer, as a folder that both harnesses load; its path.

    Args:
        folder: Where to.
        name: Of `CONFIGS` or `MORE_CONFIGS`.
        changes: Other values in the config, such as `hidden_size`.
    """
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = {**CONFIGS, **MORE_CONFIGS}[name]()
    config.vocab_size, config.max_position_embeddings = len(tokenizer), 4096
    for setting, value in changes.items():
        setattr(config, setting, value)
    model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
