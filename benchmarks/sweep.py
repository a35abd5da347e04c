"""Several gates on a model's upper third: its lower layers run for every gate, or once for all gates."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.measure import Result, compare
from benchmarks.work import load_model, yes_no_prompts
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate import attach, random_gate
from truthgate_eval.inference import self_check
from truthgate_eval.inference.batching import TokenBudget
from truthgate_eval.inference.greedy import decode_greedily
from truthgate_eval.inference.shared_prefix import SharedPrefixModel

DEVICES = ("cpu", "cuda")
_GATES = 6
_MOST = 4


def run(name: str, *, quick: bool, rounds: int, device: str = "cpu") -> Iterator[Result]:
    """Yield the comparison."""
    model, tokenizer = load_model(device)
    layout = find_attention_layout(model)
    first = layout.num_layers * 2 // 3
    prompts = [tokenizer(text).input_ids for text in yes_no_prompts(tokenizer, 8 if quick else 64)[0]]
    whole = self_check.load(model, layout.decoder)

    def sweep(forward: SharedPrefixModel) -> list[list[list[int]]]:
        answers = []
        for seed in range(2 if quick else _GATES):
            gate = random_gate(layout.shape, seed=seed, layers=range(first, layout.num_layers))
            with attach(model, gate, layout=layout):
                budget = TokenBudget.for_batch_size(8, prompts, forward.device)
                answers.append(decode_greedily(forward, prompts, max_new_tokens=_MOST, budget=budget))
        return answers

    def with_cache() -> list[list[list[int]]]:
        forward = self_check.load(model, layout.decoder)
        if self_check.cache_lower_layers(forward, layout.layers[:first]) is None:
            raise RuntimeError("the lower layers were not cached")
        return sweep(forward)

    yield compare(
        name,
        f"{len(prompts)} HaluEval questions under {2 if quick else _GATES} gates on layers {first} to "
        f"{layout.num_layers - 1}, {_MOST} new tokens",
        len(prompts),
        ("all layers for every gate", lambda: sweep(whole)),
        (f"layers 0 to {first - 1} once", with_cache),
        same,
        rounds=rounds,
        device=device,
    )


def same(theirs: list[list[list[int]]], ours: list[list[list[int]]]) -> dict[str, object]:
    """Whether every answer's tokens are equal, and how many different ones there are."""
    answers = [tuple(tokens) for under in ours for tokens in under]
    different = sum(
        a != b for a, b in zip([tuple(t) for under in theirs for t in under], answers, strict=True)
    )
    return {
        "passed": different == 0, "answers": len(answers), "different": different,
        "distinct": len(set(answers)),
    }  # fmt: skip
