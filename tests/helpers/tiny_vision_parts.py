"""Parts of tiny vision-language models: tokenizer, sizes of the text decoder, chat templates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import transformers as hf

LAYERS, HEADS = 3, 4
LINE_BREAKS = [("\u010a", "\u010a"), ("\u010a\u010a", "\u010a")]  # two and three of them as one token
_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
_MERGES = [("t", "h"), ("i", "n"), ("a", "n"), ("e", "r"), ("\u0120", "Y"), ("\u0120", "N")]

# The chat templates of the real checkpoints: LLaVA-1.5's, and Qwen's with its system message.
LLAVA_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] if c['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}START-PICTURE-END{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRING_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + '> ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant>' }}{% endif %}"
)
# SmolVLM's: a message begins with its role, and ends with a token of its own.
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}"
    "{{ ':' if m['content'][0]['type'] == 'image' else ': ' }}"
    "{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
# Gemma's: a turn between two tokens; the answer's role is `model`.
GEMMA_TEMPLATE = (
    "<s>{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{{ '<start_of_image>' if c['type'] == 'image' else c['text'] }}{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Mistral's: a question between two tokens, with the image where the user puts it.
MISTRAL_TEMPLATE = (
    "<s>{% for m in messages %}[INST]{% for c in m['content'] %}"
    "{{ '[IMG]' if c['type'] == 'image' else c['text'] }}{% endfor %}[/INST]{% endfor %}"
)


def tokenizer(extra: list[str], *, merges: Sequence[tuple[str, str]] = (), **named: str) -> Any:
    """A byte-level BPE tokenizer; `named` are attributes such as image_token, as Qwen's files have them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    # Printable characters, space and line break only, so that different tokens give different texts.
    symbols = _SPECIAL + [chr(n) for n in range(33, 127)] + ["\u0120", "\u010a"]
    vocabulary = {symbol: i for i, symbol in enumerate(symbols)}
    merges = [*_MERGES, *merges]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(extra)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens=named,
    )  # fmt: skip


def text_sizes(vocabulary: int, **more: Any) -> dict[str, Any]:
    """Settings of a text decoder of that vocabulary; `more` are further ones, or others."""
    return {
        "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": 2,
        "intermediate_size": 48, "vocab_size": vocabulary, "max_position_embeddings": 4096,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, **more,
    }  # fmt: skip
