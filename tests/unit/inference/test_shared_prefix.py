"""Packed prompts and shared prefixes give each sequence the logits that it has alone."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from helpers import tiny_models as factories

from truthgate_eval.inference import self_check
from truthgate_eval.inference.prefix_plan import PackedPrompt, PrefixGroup, plan_prefixes


def packed_prompts() -> list[PackedPrompt]:
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
    shared = self_check.load(model)
    assert shared.supports_sharing
    stem = torch.randint(3, 90, (50,), generator=torch.Generator().manual_seed(3)).tolist()
    sequences = [[*stem, i, *stem[: 3 + i % 4], last] for i in range(40) for last in (5, 6)]
    plan = plan_prefixes(sequences)
    assert plan.num_tokens < 0.3 * sum(map(len, sequences)) and any(group.prefix for group in plan.groups)
    for group in plan.groups:
        prefix = shared.compute_prefix(group)
        batch = shared.pack(group.prompts, prefix)
        logits = shared.logits(batch, *batch.last_tokens(group.prompts), prefix)
        sequence_ids = [i for prompt in group.prompts for i in prompt.sequence_ids]
        for i, values in zip(sequence_ids, logits, strict=True):
            alone = model(torch.tensor([sequences[i]])).logits[0, -1].detach()
            torch.testing.assert_close(values, alone, atol=2e-5 * float(alone.abs().max()), rtol=0)


def test_the_language_model_head_runs_on_the_read_tokens_only() -> None:
    model, counts = factories.tiny_model("llama"), []
    shared = self_check.load(model)
    model.lm_head.register_forward_hook(lambda _, args, __: counts.append(args[0].shape[:-1].numel()))
    batch = shared.pack(packed_prompts())
    assert shared.logits(batch, *batch.last_tokens(packed_prompts())).shape == (5, factories.VOCABULARY)
    assert counts == [5]


def test_scaled_and_capped_logits_are_kept() -> None:
    torch.manual_seed(0)
    config = hf.CohereConfig(**factories._GQA, logit_scale=0.3)
    model = hf.CohereForCausalLM(config).eval()
    shared = self_check.load(model)
    assert shared.supports_sharing
    batch = shared.pack(packed_prompts()[:1])
    alone = model(torch.tensor([[5, 6, 7, 10]])).logits[0, -1]
    found = shared.logits(batch, *batch.last_tokens(packed_prompts()[:1]))[1]
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-4)


def test_a_sliding_window_and_dynamic_rotary_positions_bound_what_is_shared() -> None:
    config = factories.CONFIGS["mistral"]()
    config.sliding_window = 40
    assert self_check.load(hf.AutoModelForCausalLM.from_config(config).eval()).max_shared_length == 40
    config = factories.CONFIGS["llama"]()
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert self_check.load(hf.AutoModelForCausalLM.from_config(config).eval()).max_shared_length == 128


def test_a_shared_prefix_is_computed_once() -> None:
    model = factories.tiny_model("llama")
    shared, passes = self_check.load(model), []
    model.model.register_forward_hook(lambda _, __, output: passes.append(output.last_hidden_state.shape[1]))
    prefix = shared.compute_prefix(PrefixGroup((3, 4, 5, 6), ()))
    for _ in range(3):
        shared.run(shared.pack(packed_prompts(), prefix), prefix)
    assert passes == [4, 6, 6, 6] and prefix is not None and prefix.prefix_length == 4
