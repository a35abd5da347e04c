"""A constant on the logits of yes: which tokens, in every path of a model, and exactly as much as it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from helpers import tiny_models

from truthgate_eval.errors import GateError
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.yes_offset import add_yes_offset, yes_tokens


class Words:
    """A tokenizer with a fixed vocabulary of pieces, longest first."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = sorted(pieces, key=len, reverse=True)
        self.ids = {piece: n for n, piece in enumerate(pieces, start=10)}

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        assert not add_special_tokens
        ids = []
        while text:
            piece = next((p for p in self.pieces if text.startswith(p)), text[0])
            ids.append(self.ids.get(piece, 1))
            text = text.removeprefix(piece)
        return {"input_ids": ids}


def test_the_token_is_the_first_that_the_word_no_does_not_have() -> None:
    whole = Words("Yes", " Yes", "yes", " yes", "No", " No", "no", " no")
    assert yes_tokens(whole) == [10, 11, 12, 13]
    # A space of its own begins both words: to raise it would raise no as much.
    spaces = Words(" ", "Yes", "yes", "No", "no")
    assert yes_tokens(spaces) == [11, 12]
    pieces = Words(" ", "Y", "y", "es", "N", "n", "o")
    assert yes_tokens(pieces) == [11, 12]
    with pytest.raises(GateError, match="no token for yes that it does not have for no"):
        yes_tokens(Words("x"))


@pytest.fixture
def tokenizer() -> Any:
    made = tiny_models.tiny_tokenizer()
    made.add_tokens(["Yes", "No", " Yes", " No"])
    return made


def gemma2(vocabulary: int) -> Any:
    """A model that caps its logits after the language-model head."""
    torch.manual_seed(0)
    config = hf.Gemma2Config(
        vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
        num_key_value_heads=2, intermediate_size=48, final_logit_softcapping=2.0, pad_token_id=0,
    )  # fmt: skip
    return hf.AutoModelForCausalLM.from_config(config).eval()


def cohere(vocabulary: int) -> Any:
    """A model that scales its logits after the language-model head."""
    torch.manual_seed(0)
    config = hf.CohereConfig(
        vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, logit_scale=0.25, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    return hf.AutoModelForCausalLM.from_config(config).eval()


def llama(vocabulary: int) -> Any:
    torch.manual_seed(0)
    config = tiny_models.CONFIGS["llama"]()
    config.vocab_size = vocabulary
    return hf.AutoModelForCausalLM.from_config(config).eval()


def lora(vocabulary: int) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(llama(vocabulary), LoraConfig(target_modules=["q_proj"])).eval()


def prompt_tuned(vocabulary: int) -> Any:
    from peft import PromptTuningConfig, get_peft_model

    return get_peft_model(
        llama(vocabulary), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    ).eval()


@pytest.mark.parametrize("make", [llama, gemma2, cohere, lora, prompt_tuned])
def test_exactly_the_offset_is_added_once_in_a_pass_and_in_generation(make: Any, tokenizer: Any) -> None:
    model = make(len(tokenizer))
    tokens = torch.tensor([[5, 9, 11, 30]])
    options = {
        "max_new_tokens": 1, "do_sample": False, "output_logits": True, "return_dict_in_generate": True,
        "pad_token_id": 0,
    }  # fmt: skip
    with torch.no_grad():
        before = model(input_ids=tokens).logits.clone()
        generated = model.generate(input_ids=tokens, **options).logits[0].clone()
        add_yes_offset(model, tokenizer, 3.0)
        after, generated_after = (
            model(input_ids=tokens).logits,
            model.generate(input_ids=tokens, **options).logits[0],
        )
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        direct = inner.forward(input_ids=tokens).logits  # as a wrapper may call it, without hooks
    # Virtual tokens stand before the prompt in the wrapper's own pass only.
    if make is not prompt_tuned:
        torch.testing.assert_close(direct, after)
    expected = torch.zeros(len(tokenizer))
    expected[yes_tokens(tokenizer)] = 3.0
    assert len(yes_tokens(tokenizer)) >= 3
    torch.testing.assert_close(after - before, expected.expand_as(before), atol=1e-5, rtol=0)
    torch.testing.assert_close(generated_after - generated, expected.expand_as(generated), atol=1e-5, rtol=0)


def test_an_offset_of_zero_leaves_the_model_alone(tokenizer: Any) -> None:
    model = llama(len(tokenizer))
    forward = model.forward
    add_yes_offset(model, tokenizer, 0.0)
    assert model.forward == forward


def test_the_offset_is_recorded_also_without_a_gate() -> None:
    assert GateConfig.parse("none", yes_offset="1.5").describe()["yes_offset"] == 1.5
    assert GateConfig.parse("random:1", yes_offset=-2).describe()["yes_offset"] == -2.0
    assert "yes_offset" not in GateConfig.parse("none").describe()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("much", "yes_offset=much is not a number"),
        ("nan", "yes_offset=nan is not a finite number"),
        ("kl:x", "expected kl: and a positive divergence"),
    ],
)
def test_a_wrong_offset_is_named(value: str, message: str) -> None:
    with pytest.raises(GateError, match=message):
        GateConfig.parse("none", yes_offset=value)
