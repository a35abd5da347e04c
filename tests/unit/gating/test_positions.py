"""Gates of some tokens, against hooks written here and against decoding step by step."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_models as factories

from truthgate_eval.errors import GateError
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate import Gate, attach, fold
from truthgate_eval.gating.positions import GatedPositions
from truthgate_eval.inference.prefix_plan import plan_prefixes
from truthgate_eval.inference.shared_prefix import SharedPrefixModel

NAMES = ("llama", "gpt2", "gpt_neox", "bloom")
POSITIONS = ("last", "generated")


def some_gate(positions: str, site: str = "pre", *, shift: bool = True) -> Gate:
    rng = np.random.default_rng(0)
    added = rng.normal(size=(3, 4, 8)) if site == "pre" and shift else None
    return Gate(rng.uniform(0, 2, size=(3, 4)), site, shift=added, positions=positions)


@contextmanager
def gated_by_hand(model: Any, gate: Gate) -> Iterator[dict[str, Any]]:
    """Gate the last token of each pass (ITI's code does that), or that of each pass but the first."""
    state: dict[str, Any] = {"prompt": True}
    hooks = []
    for layer, projection in enumerate(find_attention_layout(model).projections):
        factors = torch.from_numpy(gate.values[layer]).repeat_interleave(8)
        added = torch.zeros(32) if gate.shift is None else torch.from_numpy(gate.shift[layer].ravel())

        def change(x: torch.Tensor, factors: Any = factors, added: Any = added) -> torch.Tensor:
            if gate.positions == "generated" and state["prompt"]:
                return x
            x = x.clone()
            x[:, -1] = x[:, -1] * factors + added
            return x

        if gate.site == "pre":
            hook = projection.module.register_forward_pre_hook(
                lambda _, args, c=change: (c(args[0]), *args[1:])
            )
        else:
            hook = projection.module.register_forward_hook(lambda _m, _a, out, c=change: c(out))
        hooks.append(hook)
    top = find_attention_layout(model).decoder.register_forward_hook(lambda *_: state.update(prompt=False))
    try:
        yield state
    finally:
        for hook in (*hooks, top):
            hook.remove()


def generate(model: Any, tokens: torch.Tensor, mask: torch.Tensor, **options: Any) -> Any:
    return model.generate(
        input_ids=tokens, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, do_sample=False,
        output_scores=True, return_dict_in_generate=True, **options,
    )  # fmt: skip


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("name", NAMES)
def test_generation_equals_hooks_by_hand(name: str, site: str, positions: str) -> None:
    model, gate = factories.tiny_model(name), some_gate(positions, site)
    tokens = factories.prompts()
    mask = torch.ones_like(tokens)
    tokens[1, :3], mask[1, :3] = 0, 0  # padding on the left
    vanilla = generate(model, tokens, mask)
    with gated_by_hand(model, gate):
        expected = generate(model, tokens, mask)
    with attach(model, gate):
        found = generate(model, tokens, mask)
    for ours, theirs in zip(found.scores, expected.scores, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.allclose(found.scores[0], vanilla.scores[0]) == (positions == "generated")
    assert not torch.allclose(found.scores[1], vanilla.scores[1], atol=1e-3)
    assert torch.equal(generate(model, tokens, mask).sequences, vanilla.sequences)  # nothing is left hooked


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_prompt_of_one_token_is_no_generated_token(positions: str) -> None:
    model, gate = factories.tiny_model("llama"), some_gate(positions)
    tokens = factories.prompts()[:, :1]
    with gated_by_hand(model, gate):
        expected = generate(model, tokens, torch.ones_like(tokens))
    with attach(model, gate):
        found = generate(model, tokens, torch.ones_like(tokens))
    torch.testing.assert_close(torch.stack(found.scores), torch.stack(expected.scores), atol=1e-5, rtol=1e-4)


def decoded_step_by_step(model: Any, gate: Gate, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
    """Log-probabilities of an answer's tokens, fed one by one after the prompt."""
    found: list[float] = []
    argument = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    cache = None
    with gated_by_hand(model, gate), torch.no_grad():
        for fed, target in zip([list(prompt), *([token] for token in answer[:-1])], answer, strict=True):
            out = model(torch.tensor([fed]), use_cache=True, **{argument: cache})
            cache = out.past_key_values
            found.append(float(out.logits[0, -1].log_softmax(-1)[target]))
    return found


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("name", NAMES)
def test_a_scored_answer_is_gated_as_in_decoding_it_step_by_step(
    name: str, site: str, positions: str
) -> None:
    model, gate = factories.tiny_model(name), some_gate(positions, site)
    rows = [([5, 9, 17, 33], [8, 40, 3]), ([7, 6], [50]), ([11, 12, 13, 14, 15], [16, 17])]
    expected = [decoded_step_by_step(model, gate, prompt, answer) for prompt, answer in rows]
    with torch.no_grad(), attach(model, gate) as handle:
        for (prompt, answer), own in zip(rows, expected, strict=True):
            with handle.scoring(len(answer) - 1):  # the answer's last token is not run
                logits = model(torch.tensor([[*prompt, *answer[:-1]]])).logits[0]
            found = logits.log_softmax(-1)[len(prompt) - 1 :]
            found = [float(found[i, token]) for i, token in enumerate(answer)]
            assert found == pytest.approx(own, abs=1e-4)
        # The same rows as one batch, padded on the right, with the answers' last tokens.
        width = max(len(prompt) + len(answer) for prompt, answer in rows)
        tokens = torch.zeros((3, width), dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, (prompt, answer) in enumerate(rows):
            tokens[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
            mask[row, : len(prompt) + len(answer)] = 1
        with handle.scoring([width - len(prompt) for prompt, _ in rows]):
            logits = model(tokens, attention_mask=mask, use_cache=False).logits.log_softmax(-1)
        for row, (prompt, answer) in enumerate(rows):
            found = [float(logits[row, len(prompt) - 1 + i, token]) for i, token in enumerate(answer)]
            assert found == pytest.approx(expected[row], abs=1e-4)


def test_all_positions_are_the_same_gate_as_ever_and_scoring_changes_nothing() -> None:
    model, tokens = factories.tiny_model("llama"), factories.prompts()
    with torch.no_grad(), attach(model, some_gate("all")) as handle:
        gated = model(tokens).logits
        with handle.scoring(2):
            assert torch.equal(gated, model(tokens).logits)
        handle.set(some_gate("last"))
        last = model(tokens).logits
        assert not torch.equal(gated[:, -1], last[:, -1])
        handle.set(some_gate("all"))
        assert torch.equal(gated, model(tokens).logits)
    with torch.no_grad():
        assert torch.equal(last[:, :-1], model(tokens).logits[:, :-1])  # earlier tokens are vanilla
    modules = list(model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


def test_a_gate_of_some_tokens_is_not_folded() -> None:
    with pytest.raises(GateError, match="positions=last cannot be folded into weights: use mode=live"):
        fold(factories.tiny_model("llama"), some_gate("last"))
    with pytest.raises(GateError, match="unknown positions 'first': expected one of all, last, generated"):
        Gate(np.ones((3, 4)), positions="first")  # type: ignore[arg-type]


def test_passes_whose_gated_tokens_cannot_be_told_are_refused() -> None:
    model, tokens = factories.tiny_model("llama"), factories.prompts()
    padded = torch.ones_like(tokens)
    padded[0, -2:] = 0
    with torch.no_grad(), attach(model, some_gate("last")) as handle:
        with pytest.raises(GateError, match="padded on the left"):
            model(tokens, attention_mask=padded)
        handle.set(some_gate("generated"))
        with pytest.raises(GateError, match="this pass has use_cache=False"):
            generate(model, tokens, torch.ones_like(tokens), use_cache=False)


@pytest.mark.parametrize("positions", POSITIONS)
def test_shared_prefixes_are_refused(positions: str) -> None:
    model = SharedPrefixModel(factories.tiny_model("llama"))
    plan = plan_prefixes(
        [[5, 6, 7, 8, 9, 10], [5, 6, 7, 8, 9, 11], [5, 6, 7, 8, 12, 13]], share=True,
        max_shared_length=model.max_shared_length, prefix_pass_cost=0,
    )  # fmt: skip
    with attach(model.model, some_gate(positions)), pytest.raises(GateError, match="use engine=off"):
        for group in plan.groups:
            prefix = model.compute_prefix(group)
            model.run(model.pack(group.prompts, prefix), prefix)


def test_activations_with_rows_and_length_as_one_are_told_apart() -> None:
    """Some attention blocks flatten them before the output projection."""
    decoder = torch.nn.Identity()
    positions = GatedPositions(decoder, "last")
    decoder(torch.zeros(2, 3, 8))
    x, gated = torch.zeros(2, 3, 5), torch.ones(2, 3, 5)
    expected = torch.zeros(2, 3, 5)
    expected[:, -1] = 1
    assert torch.equal(positions.select(x, gated), expected)
    assert torch.equal(positions.select(x.flatten(0, 1), gated.flatten(0, 1)), expected.flatten(0, 1))
    with pytest.raises(
        GateError, match=r"one activation for each token: this layer has \(2, 4, 5\) for 2 x 3"
    ):
        positions.select(torch.zeros(2, 4, 5), torch.ones(2, 4, 5))
