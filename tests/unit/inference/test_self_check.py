"""Models that are wrong with shared prefixes are found by running test prompts."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers as hf
from helpers import tiny_models as factories

from truthgate_eval.errors import GateError
from truthgate_eval.inference import self_check
from truthgate_eval.inference.prefix_plan import PackedPrompt
from truthgate_eval.inference.reference import ReferenceLogits, logits_and_rounding
from truthgate_eval.inference.self_check import mismatch, parse_engine, run_safely
from truthgate_eval.inference.shared_prefix import SharedPrefixModel


class Recurrent(torch.nn.Module):
    """Adds to every token the mean of all tokens before it in the row: a state that no mask reaches."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[None, :, None]


def with_state(model: Any) -> None:
    block = Recurrent()
    model.model.layers[1].input_layernorm.register_forward_hook(lambda _, __, output: block(output))


def without_positions(model: Any) -> None:
    def drop(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        kwargs.pop("position_ids", None)
        return args, kwargs

    model.model.register_forward_pre_hook(drop, with_kwargs=True)


def without_mask(model: Any) -> None:
    def drop(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "attention_mask": None}

    model.model.register_forward_pre_hook(drop, with_kwargs=True)


def failing(model: Any) -> None:
    def refuse(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        if getattr(kwargs.get("attention_mask"), "ndim", 2) == 4:
            raise KeyError("no 4D masks\nhere")

    model.model.register_forward_pre_hook(refuse, with_kwargs=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("break_", [with_state, without_positions, without_mask, failing])
def test_a_model_that_cannot_share_is_found_and_named_in_one_line(
    break_: Callable[[Any], None], dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    model = factories.tiny_model("llama", dtype)
    assert self_check.load(model).supports_sharing
    break_(model)
    with caplog.at_level(logging.WARNING):
        assert not self_check.load(model).supports_sharing
    (record,) = caplog.records
    assert "LlamaForCausalLM shares no prefixes" in record.message and "\n" not in record.message


def test_wrapping_a_model_runs_nothing() -> None:
    model, passes = factories.tiny_model("llama"), []
    model.model.register_forward_hook(lambda *_: passes.append(1))
    SharedPrefixModel(model)
    assert passes == []
    self_check.load(model)
    assert passes


@pytest.mark.parametrize("name", ["bloom", "mpt"])
def test_positions_that_count_tokens_in_the_row_are_found(name: str) -> None:
    assert not self_check.load(factories.tiny_model(name)).supports_sharing


def test_mamba_cannot_share() -> None:
    torch.manual_seed(0)
    config = hf.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=96, state_size=4)
    assert not self_check.load(hf.MambaForCausalLM(config).eval()).supports_sharing


def test_half_precision_may_differ_as_much_as_the_models_own_batches_and_not_much_more() -> None:
    plain = torch.tensor([[0.0, 10.0], [0.0, -10.0]])
    prompt = PackedPrompt((), ((5,), (6,)), (0, 1))
    for error, rounding, dtype, fits in (
        (1.9, 0.0, torch.bfloat16, True), (2.1, 0.0, torch.bfloat16, False), (4.1, 2.1, torch.bfloat16, True),
        (4.3, 2.1, torch.bfloat16, False), (9.9, 50.0, torch.bfloat16, True),
        (10.1, 50.0, torch.bfloat16, False), (0.0009, 50.0, torch.float32, True),
        (0.0011, 50.0, torch.float32, False),
    ):  # fmt: skip
        reference = ReferenceLogits(prompt, plain, rounding)
        assert (mismatch(plain + error, reference, dtype) is None) == fits, (error, rounding, dtype)


def test_rounding_is_that_of_padded_batches_against_each_input_alone() -> None:
    logits = {1: [0.0, 2.0], 2: [0.5, 2.0], 3: [0.0, 2.25]}

    def run(inputs: Sequence[str]) -> torch.Tensor:
        return torch.tensor([logits[len(inputs)]] * len(inputs))

    alone, rounding = logits_and_rounding(run, ["a", "b"], "c", torch.bfloat16)
    assert alone.tolist() == [[0.0, 2.0]] * 2 and rounding == 0.5
    assert logits_and_rounding(run, ["a", "b"], "c", torch.float32)[1] == 0


def test_an_error_without_a_message_is_a_reason_too() -> None:
    def check() -> str | None:
        raise NotImplementedError

    assert run_safely(check) == "NotImplementedError"


def test_no_deprecated_argument_is_used() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        assert self_check.load(factories.tiny_model("llama")).supports_sharing


def test_an_engine_that_does_not_exist_is_named() -> None:
    assert parse_engine("auto") == "auto" and parse_engine("off") == "off"
    with pytest.raises(GateError, match="unknown engine 'fast': expected one of auto, off"):
        parse_engine("fast")
