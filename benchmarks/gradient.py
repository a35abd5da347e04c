"""Gradients of all heads' gates, against the capture of the same documents' activations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.measure import Result, compare
from benchmarks.work import load_model, pairs
from truthgate_eval.attribution.evaluation import measure_log_odds
from truthgate_eval.attribution.gradient import gate_gradients
from truthgate_eval.attribution.log_odds import AnswerDocument
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate import Gate, attach
from truthgate_eval.inference import self_check
from truthgate_eval.probing.capture import capture

DEVICES = ("cpu", "cuda")
# Largest distance of the gate from 1 in the check, and the documents that it takes.
_STEP, _CHECKED = 0.02, 16


def run(name: str, *, quick: bool, rounds: int, device: str = "cpu") -> Iterator[Result]:
    """Yield the comparison."""
    model, tokenizer = load_model(device)
    count = 8 if quick else 200
    sequences = pairs(tokenizer, count)
    documents = [
        AnswerDocument((tuple(right), tuple(wrong)), (True, False), number)
        for number, (right, wrong) in enumerate(zip(sequences[::2], sequences[1::2], strict=True))
    ]
    layout = find_attention_layout(model)
    forward = self_check.load(model, layout.decoder)  # before the clock starts

    def check(_: Any, ours: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
        """The mean gradient against the log-odds a small step along it and against it."""
        gradient = ours[0][:_CHECKED].mean(axis=0).astype(np.float64)
        step = _STEP / np.abs(gradient).max()
        odds = []
        for sign in (1, -1):
            with attach(model, Gate((1 + sign * step * gradient).astype(np.float32)), layout=layout):
                odds.append(measure_log_odds(forward, documents[:_CHECKED], batch_size=4).mean())
        measured, expected = (odds[0] - odds[1]) / (2 * step), float((gradient**2).sum())
        error = float(abs(measured - expected) / expected)
        return {"passed": error < (0.02 if device == "cpu" else 0.2), "error_along_the_gradient": error}

    yield compare(
        name,
        f"{count} HaluEval-QA questions, {len(sequences)} sequences",
        count,
        (
            "truthgate_eval.probing.capture, batch_size=4",
            lambda: capture(model, sequences, batch_size=4, layout=layout, forward=forward),
        ),
        (
            "truthgate_eval.attribution.gradient.gate_gradients, batch_size=4",
            lambda: gate_gradients(forward, layout, documents, batch_size=4),
        ),
        check,
        rounds=rounds,
        device=device,
    )
