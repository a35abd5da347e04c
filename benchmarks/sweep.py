"""A sweep over gates on a model's upper third: its lower layers run for every gate, or once for all."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.measure import Result, compare
from benchmarks.work import judgements, load_model
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate import attach, random_gate
from truthgate_eval.inference.greedy import decode_greedily
from truthgate_eval.inference.lower_layer_cache import cache_lower_layers
from truthgate_eval.inference.shared_prefix import SharedPrefixModel, TokenBudget

DEVICES = ("cpu", "cuda")
_GATES = 6
_MOST = 4


def run(name: str, *, quick: bool, rounds: int, device: str = "cpu") -> Iterator[Result]:
    """Yield the comparison."""
    model, tokenizer = load_model(device)
    anatomy = find_attention_layout(model)
    first = anatomy.num_layers * 2 // 3
    prompts = [tokenizer(text).input_ids for text in judgements(tokenizer, 8 if quick else 64)[0]]
    whole = SharedPrefixModel(model, anatomy.decoder)

    def sweep(forward: SharedPrefixModel) -> list[list[list[int]]]:
        answers = []
        for seed in range(2 if quick else _GATES):
            gate = random_gate(anatomy.shape, seed=seed, layers=range(first, anatomy.num_layers))
            with attach(model, gate, anatomy=anatomy):
                budget = TokenBudget.for_batch_size(8, prompts, forward.device)
                answers.append(decode_greedily(forward, prompts, max_new_tokens=_MOST, budget=budget))
        return answers

    def once() -> list[list[list[int]]]:
        forward = SharedPrefixModel(model, anatomy.decoder)
        if cache_lower_layers(forward, anatomy.layers[:first]) is None:
            raise RuntimeError("nothing was kept")
        return sweep(forward)

    yield compare(
        name,
        f"{len(prompts)} HaluEval questions under {2 if quick else _GATES} gates on layers {first} to "
        f"{anatomy.num_layers - 1}, {_MOST} new tokens",
        len(prompts),
        ("all layers for every gate", lambda: sweep(whole)),
        (f"layers 0 to {first - 1} once", once),
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
