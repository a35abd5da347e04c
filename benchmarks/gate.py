"""Cost of a gate: one forward pass with and without it, live and folded, eager and compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.measure import Result, compare
from benchmarks.work import load_model, pairs
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate import attach, fold, random_gate

DEVICES = ("cpu", "cuda")
_COMPILED_LAYERS = 8
Pass = Callable[[], torch.Tensor]


def run(name: str, *, quick: bool, rounds: int, device: str = "cpu") -> Iterator[Result]:
    """Yield one comparison for each mode; the ratio is the gated model's speed over the plain one's.

    `gate_cost` has the eager modes, `gate_cost_compiled` those under `torch.compile`, which takes minutes.
    """
    compiled = name.endswith("compiled")
    # On a GPU a few layers of a 7B shape are compiled: three models of 32 would take the time of all else.
    plain, tokenizer = load_model(device, _COMPILED_LAYERS) if compiled else load_model(device)
    tokens = torch.tensor([sequence[:64] for sequence in pairs(tokenizer, 8)], device=plain.device)
    # Memory for two models of 7B is not everywhere; on the CPU a copy leaves the plain model as it is.
    live, folded = copy.deepcopy(plain), copy.deepcopy(plain)
    layout = find_attention_layout(live)
    gate = random_gate(layout.shape, seed=0)
    fold(folded, gate)
    attach(live, gate, layout=layout)
    modes = {"live": (plain, live), "folded": (plain, folded)}
    if compiled:
        # By default torch takes a module's hooks for those of the module compiled first: no gate at all.
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        bare = torch.compile(plain)
        modes = {f"{mode}_compiled": (bare, torch.compile(gated)) for mode, (_, gated) in modes.items()}
    work = f"a pass of {tokens.numel()} tokens"
    if compiled and device == "cuda":
        work += f" through {_COMPILED_LAYERS} layers"
    for mode, both in modes.items():
        sides = [_pass(model, tokens) for model in both]
        if compiled:  # compiling is no part of a pass
            for side in sides:
                side()
        yield compare(
            f"gate_cost_{mode}", work, tokens.numel(),
            (f"no gate{', compiled' * compiled}", sides[0]), (f"{mode.replace('_', ', ')} gate", sides[1]),
            _differ, rounds=1 if quick else 7 * rounds, device=device,
        )  # fmt: skip


def _pass(model: Any, tokens: torch.Tensor) -> Pass:
    def forward() -> torch.Tensor:
        with torch.no_grad():
            return model(tokens, use_cache=False).logits

    return forward


def _differ(plain: torch.Tensor, gated: torch.Tensor) -> dict[str, Any]:
    """Checks that the gate acts: without an effect its cost would say nothing."""
    change = float((plain - gated).abs().max() / plain.abs().max())
    return {"passed": change > 1e-3, "largest_change_of_logits": change}
