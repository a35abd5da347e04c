"""Rows, trunks and packed lanes give each sequence what it gets alone; what cannot is found by trying."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers as hf
from helpers import tiny_models as factories

from truthgate_eval.inference.prefix_plan import PackedPrompt, PrefixGroup, plan_prefixes
from truthgate_eval.inference.self_check import logits_and_rounding, mismatch
from truthgate_eval.inference.shared_prefix import SharedPrefixModel, TokenBudget


def rows() -> list[PackedPrompt]:
    return [
        PackedPrompt((5, 6, 7), ((8, 9), (10,)), (0, 1)),
        PackedPrompt((), ((11, 12),), (2,)),
        PackedPrompt((4,), ((3,), (9,)), (3, 4)),
    ]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", factories.CONFIGS)
def test_logits_of_a_plan_are_those_of_each_sequence_alone(name: str, attention: str) -> None:
    model = factories.tiny_model(name)
    model.set_attn_implementation(attention)
    forward = SharedPrefixModel(model)
    assert forward.supports_sharing
    stem = torch.randint(3, 90, (50,), generator=torch.Generator().manual_seed(3)).tolist()
    sequences = [[*stem, i, *stem[: 3 + i % 4], last] for i in range(40) for last in (5, 6)]
    found = plan_prefixes(sequences)
    assert found.num_tokens < 0.3 * sum(map(len, sequences)) and any(group.prefix for group in found.groups)
    for group in found.groups:
        trunk = forward.compute_prefix(group)
        batch = forward.pack(group.prompts, trunk)
        logits = forward.logits(batch, *batch.last_tokens(group.prompts), trunk)
        members = [member for row in group.prompts for member in row.sequence_ids]
        for member, values in zip(members, logits, strict=True):
            alone = model(torch.tensor([sequences[member]])).logits[0, -1].detach()
            torch.testing.assert_close(values, alone, atol=2e-5 * float(alone.abs().max()), rtol=0)


def test_the_head_runs_on_the_wanted_tokens_only() -> None:
    model, seen = factories.tiny_model("llama"), []
    forward = SharedPrefixModel(model)
    model.lm_head.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[:-1].numel()))
    batch = forward.pack(rows())
    assert forward.logits(batch, *batch.last_tokens(rows())).shape == (5, factories.VOCABULARY)
    assert seen == [5]


class Recurrent(torch.nn.Module):
    """Adds to every token the mean of all tokens to its left in the row: a state that no mask reaches."""

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
    break_: Any, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    model = factories.tiny_model("llama", dtype)
    assert SharedPrefixModel(model).supports_sharing
    break_(model)
    with caplog.at_level(logging.WARNING):
        assert not SharedPrefixModel(model).supports_sharing
    (record,) = caplog.records
    assert "LlamaForCausalLM shares no prefixes" in record.message and "\n" not in record.message


def test_half_precision_may_round_as_the_models_own_batches_do_and_not_much_more() -> None:
    plain = torch.tensor([[0.0, 10.0], [0.0, -10.0]])
    for error, rounding, dtype, fits in (
        (1.9, 0.0, torch.bfloat16, True), (2.1, 0.0, torch.bfloat16, False), (4.1, 2.1, torch.bfloat16, True),
        (4.3, 2.1, torch.bfloat16, False), (9.9, 50.0, torch.bfloat16, True),
        (10.1, 50.0, torch.bfloat16, False), (0.0009, 50.0, torch.float32, True),
        (0.0011, 50.0, torch.float32, False),
    ):  # fmt: skip
        assert (mismatch(plain + error, plain, rounding, dtype) is None) == fits, (error, rounding, dtype)


def test_rounding_is_that_of_padded_batches_against_each_alone() -> None:
    logits = {1: [0.0, 2.0], 2: [0.5, 2.0], 3: [0.0, 2.25]}

    def plain(asked: Sequence[str]) -> torch.Tensor:
        return torch.tensor([logits[len(asked)]] * len(asked))

    alone, rounding = logits_and_rounding(plain, ["a", "b"], "c", torch.bfloat16)
    assert alone.tolist() == [[0.0, 2.0]] * 2 and rounding == 0.5
    assert logits_and_rounding(plain, ["a", "b"], "c", torch.float32)[1] == 0


@pytest.mark.parametrize("name", ["bloom", "mpt"])
def test_positions_that_count_tokens_in_the_row_are_found(name: str) -> None:
    assert not SharedPrefixModel(factories.tiny_model(name)).supports_sharing


def test_mamba_falls_back() -> None:
    torch.manual_seed(0)
    config = hf.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=96, state_size=4)
    assert not SharedPrefixModel(hf.MambaForCausalLM(config).eval()).supports_sharing


def test_scaled_and_capped_logits_are_kept() -> None:
    torch.manual_seed(0)
    config = hf.CohereConfig(**factories._GQA, logit_scale=0.3)
    model = hf.CohereForCausalLM(config).eval()
    forward = SharedPrefixModel(model)
    assert forward.supports_sharing
    batch = forward.pack(rows()[:1])
    alone = model(torch.tensor([[5, 6, 7, 10]])).logits[0, -1]
    found = forward.logits(batch, *batch.last_tokens(rows()[:1]))[1]
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-4)


def test_a_window_and_a_changing_rotation_bound_what_is_shared() -> None:
    config = factories.CONFIGS["mistral"]()
    config.sliding_window = 40
    assert SharedPrefixModel(hf.AutoModelForCausalLM.from_config(config).eval()).max_shared_length == 40
    config = factories.CONFIGS["llama"]()
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert SharedPrefixModel(hf.AutoModelForCausalLM.from_config(config).eval()).max_shared_length == 128


def test_batches_keep_to_the_budget_and_shrink_where_memory_ends() -> None:
    many = [PackedPrompt((), ((3,) * n,), (n,)) for n in range(1, 30)]
    seen: list[list[int]] = []
    budget = TokenBudget(64)

    def run(batch: list[PackedPrompt]) -> None:
        if sum(map(len, batch)) > 40:
            raise torch.OutOfMemoryError
        seen.append([row.sequence_ids[0] for row in batch])

    budget.run_batches(many, run)
    assert sorted(itertools.chain(*seen)) == list(range(1, 30)) and budget.tokens < 64
    with pytest.raises(RuntimeError, match="something else"):
        budget.run_batches(many, fail)


def fail(_: list[PackedPrompt]) -> None:
    raise RuntimeError("something else")


def test_a_row_too_large_for_memory_is_split_by_its_branches() -> None:
    seen: list[tuple[int, ...]] = []

    def run(batch: list[PackedPrompt]) -> None:
        if sum(map(len, batch)) > 6:
            raise torch.OutOfMemoryError
        seen.append(batch[0].sequence_ids)

    TokenBudget(100).run_batches([PackedPrompt((1, 2), ((3,), (4,), (5,), (6,), (7,)), (0, 1, 2, 3, 4))], run)
    assert sorted(itertools.chain(*seen)) == [0, 1, 2, 3, 4] and len(seen) > 1


def test_a_trunk_is_computed_once() -> None:
    model = factories.tiny_model("llama")
    forward, passes = SharedPrefixModel(model), []
    model.model.register_forward_hook(lambda _, __, output: passes.append(output.last_hidden_state.shape[1]))
    trunk = forward.compute_prefix(PrefixGroup((3, 4, 5, 6), ()))
    for _ in range(3):
        forward.run(forward.pack(rows(), trunk), trunk)
    assert passes == [4, 6, 6, 6] and trunk is not None and trunk.prefix_length == 4


def test_no_deprecated_argument_is_used() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        assert SharedPrefixModel(factories.tiny_model("llama")).supports_sharing
