"""Activations of HaluEval pairs, against ITI's code: one sequence at a time through the whole model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Result, compare
from benchmarks.work import load_model, pairs
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.inference import self_check
from truthgate_eval.inference.prefix_plan import plan_prefixes
from truthgate_eval.probing.capture import capture

DEVICES = ("cpu", "cuda")


def run(name: str, *, quick: bool, rounds: int, device: str = "cpu") -> Iterator[Result]:
    """Yield the comparison."""
    model, tokenizer = load_model(device)
    count = 8 if quick else 100
    sequences = pairs(tokenizer, count)
    layout = find_attention_layout(model)
    forward = self_check.load(model, layout.decoder)  # before the clock starts
    bound = products(model, sequences)
    yield compare(
        name,
        f"{len(sequences)} sequences of {count} HaluEval-QA questions",
        len(sequences),
        ("batch 1, logits, all hidden states, hooks", lambda: one_by_one(model, layout, sequences)),
        (
            "truthgate_eval.probing.capture, batch_size=4",
            lambda: capture(model, sequences, batch_size=4, layout=layout, forward=forward),
        ),
        lambda theirs, ours: {**agree(theirs, ours, 1e-5 if device == "cpu" else 0.1), **bound},
        rounds=rounds,
        device=device,
    )


def products(model: Any, sequences: list[list[int]]) -> dict[str, Any]:
    """How many times as many products with weights the baseline computes: a bound on what sharing saves.

    Attention itself, which is small here, and everything that is not a matrix product are left out.
    """
    decoder = model.get_decoder()

    def weights(part: Any) -> int:
        return sum(one.weight.numel() for one in part.modules() if isinstance(one, torch.nn.Linear))

    theirs = sum(map(len, sequences)) * (weights(decoder) + model.get_output_embeddings().weight.numel())
    ours = plan_prefixes(sequences).num_tokens * (weights(decoder) - weights(decoder.layers[-1].mlp))
    return {"products_baseline_over_ours": f"{theirs / ours:.2f}"}


def one_by_one(model: Any, layout: Any, sequences: list[list[int]]) -> np.ndarray:
    """honest_llama's way: all hidden states, and heads and MLPs of all layers, at all tokens."""
    projections = [projection.module for projection in layout.projections]
    mlps = [layer.mlp for layer in model.get_decoder().layers]
    kept = []
    for sequence in sequences:
        outputs: list[list[torch.Tensor]] = [[], []]
        hooks = [
            module.register_forward_hook(lambda _, __, output, own=own: own.append(output.detach()))
            for modules, own in zip((projections, mlps), outputs, strict=True)
            for module in modules
        ]
        with torch.no_grad():
            output = model(
                torch.tensor([sequence], device=model.device), output_hidden_states=True, use_cache=True
            )
        for hook in hooks:
            hook.remove()
        heads, _, _ = (
            torch.stack(states).squeeze(1).float().cpu().numpy()
            for states in (*outputs, output.hidden_states)
        )
        kept.append(heads[:, -1].copy())
    return np.stack(kept)


def agree(theirs: np.ndarray, ours: np.ndarray, allowed: float) -> dict[str, Any]:
    """Largest error of each layer over the layer's largest activation; bfloat16 rounds to 3 digits."""
    ours = ours.reshape(theirs.shape)
    error = float((np.abs(theirs - ours).max(axis=(0, 2)) / np.abs(theirs).max(axis=(0, 2))).max())
    return {"passed": error < allowed, "error_over_layer_max": error}
