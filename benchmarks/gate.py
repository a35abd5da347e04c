"""What a live gate costs: the same forward pass with it and without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.measure import Result, compare
from benchmarks.work import load_model, pairs
from truthgate_eval.anatomy import find_anatomy
from truthgate_eval.gate import attach, random_gate


def run(name: str, *, quick: bool, rounds: int) -> Iterator[Result]:
    """Yield the comparison; its ratio is the gated model's speed over the plain one's."""
    model, tokenizer = load_model()
    anatomy = find_anatomy(model)
    tokens = torch.tensor([sequence[:64] for sequence in pairs(tokenizer, 8)])
    times = 1 if quick else 2
    gate = random_gate(anatomy.shape, seed=0)
    off = random_gate(anatomy.shape, seed=0)
    off.values[:] = 1.0

    def plain() -> torch.Tensor:
        with torch.no_grad():
            return [model(tokens).logits for _ in range(times)][-1]

    def gated() -> torch.Tensor:
        with attach(model, gate, anatomy=anatomy):
            return plain()

    def check(vanilla: torch.Tensor, found: torch.Tensor) -> dict[str, Any]:
        with attach(model, off, anatomy=anatomy):
            same = torch.equal(plain(), vanilla)
        return {"passed": same and not torch.equal(found, vanilla), "gate_of_ones_is_bitwise_equal": same}

    yield compare(
        name, f"{times} passes of {tokens.numel()} tokens", times * tokens.numel(),
        ("no gate", plain), ("live gate", gated), check, rounds=3 * rounds,
    )  # fmt: skip
