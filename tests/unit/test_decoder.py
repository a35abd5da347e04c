from __future__ import annotations

from typing import Any

import pytest
import transformers as hf
from helpers import small_decoder
from helpers import tiny_models as factories
from torch import nn

from truthgate_eval.decoder import find_decoder
from truthgate_eval.errors import ModelError

_SMALL = {
    "hidden_size": 16,
    "num_attention_heads": 4,
    "vocab_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
}


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom"])
def test_the_decoder_of_a_language_model_is_its_model_without_a_head(name: str) -> None:
    model = factories.tiny_model(name)
    found = find_decoder(model)
    assert found is (model.model.decoder if name == "opt" else model.base_model)


def test_the_decoder_of_a_vision_language_model_is_its_text_part() -> None:
    model = factories.tiny_vision_model()
    assert find_decoder(model) is model.model.language_model


def test_a_head_that_a_class_calls_decoder_is_not_taken() -> None:
    config = hf.ModernBertDecoderConfig(**_SMALL, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = hf.ModernBertDecoderForCausalLM(config)
    assert isinstance(model.decoder, nn.Linear)
    assert find_decoder(model) is model.model


def test_a_language_model_that_a_class_wraps_is_opened() -> None:
    """BLIP-2's `get_decoder` gives an OPT with its head."""
    text = hf.OPTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        ffn_dim=16,
        vocab_size=32,
        word_embed_proj_dim=16,
    )
    small: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    config = hf.Blip2Config(
        vision_config={**small, "image_size": 28, "patch_size": 14},
        qformer_config={**small, "encoder_hidden_size": 16, "vocab_size": 32},
        text_config=text,
        num_query_tokens=2,
    )
    model = hf.Blip2ForConditionalGeneration(config)
    assert find_decoder(model) is model.language_model.model.decoder


@pytest.mark.parametrize("answer", [None, "text", nn.Linear(2, 2)])
@pytest.mark.parametrize(
    ("base", "reason"),
    [(None, "'Model' object has no attribute 'decoder'"), ("text", r"get_decoder\(\) gives 'text'")],
)
def test_a_model_without_a_decoder_is_named(answer: Any, base: Any, reason: str) -> None:
    model = small_decoder.Model()
    model.get_decoder = lambda: answer  # type: ignore[method-assign]
    del model.decoder
    if base is not None:
        model.decoder = base
    with pytest.raises(ModelError, match=rf"^Model has no text decoder: {reason}"):
        find_decoder(model)
