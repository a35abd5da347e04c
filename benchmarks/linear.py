"""Time and memory of probing by number of documents: HaluEval-QA from tokens to scores, step by step.

Each number of documents is run once, in a process of its own. The real model's 10,000 documents take an hour.
A two-layer model of the same class, on the same tokens, shows in seconds what all but the model's own work
costs.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.measure import own_peak, write
from benchmarks.work import load_model, pairs
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.inference.prefix_plan import plan_prefixes
from truthgate_eval.probing.activations import allocate_activations
from truthgate_eval.probing.capture import capture
from truthgate_eval.probing.config import ProbeConfig
from truthgate_eval.probing.cross_validation import cross_validate_heads

STEPS = ("tokens", "plan", "activations", "probes")


@dataclass(frozen=True)
class Growth:
    """Seconds of each step and the peak memory of all, by the number of documents.

    Attributes:
        name: The benchmark's.
        work: What was done, in words.
        points: For each number of documents its sequences, planned.num_tokens, CPU seconds of each step, and
            MiB at the highest: activations in a file, without that file's pages.
        check: Whether a document costs the same in all of them.
    """

    name: str
    work: str
    points: list[dict[str, Any]]
    check: dict[str, Any]

    def save(self, *, quick: bool) -> Path:
        """Write it beside the comparisons."""
        return write(self.name, asdict(self), device="cpu", quick=quick)

    def line(self) -> str:
        """The result in lines."""
        return "\n".join([f"{self.name}: {self.work}", *map(str, self.points), str(self.check)])


def run(name: str, *, quick: bool, rounds: int) -> Iterator[Growth]:
    """Yield the growth of the real model's probing and of a tiny one's; each number is run once."""
    del rounds
    model, tokenizer = load_model()
    sizes = (50, 100) if quick else (100, 1000, 10000)
    small = tiny(len(tokenizer))
    yield _growth(f"{name}_tiny", "a Llama of 2 layers x 4 heads x 16", small, tokenizer, sizes)
    sizes = (10, 20) if quick else sizes
    yield _growth(f"{name}_real", "SmolLM2-135M", model, tokenizer, sizes)


def tiny(vocabulary: int) -> Any:
    """A random model whose own work takes next to no time."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=vocabulary,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def _growth(name: str, what: str, model: Any, tokenizer: Any, sizes: tuple[int, ...]) -> Growth:
    probe(model, tokenizer, 10)  # what is imported at first use is no part of the time
    points = [_point(model, tokenizer, documents) for documents in sizes]
    each = [sum(point[step] for step in STEPS) / point["tokens_planned"] for point in points]
    worse = each[-1] / each[0]
    # The first numbers are small: what does not grow weighs in them, so that less a token is no error.
    check = {"passed": worse < 1.5, "seconds_a_token_last_over_first": round(worse, 2)}
    return Growth(name, f"probing HaluEval-QA with {what}, newton, five folds", points, check)


def _point(model: Any, tokenizer: Any, documents: int) -> dict[str, Any]:
    """One number of documents, with the peak memory of the process that ran them."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder, "seconds.json")
        peak = own_peak(lambda: record.write_text(json.dumps(probe(model, tokenizer, documents))))
        return {"documents": documents, **json.loads(record.read_text()), "peak_mib": peak}


def probe(model: Any, tokenizer: Any, documents: int) -> dict[str, Any]:
    """CPU seconds of each step."""
    seconds = {}

    def timed(step: str, call: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = call()
        seconds[step] = round(time.process_time() - start, 3)
        return result

    sequences = timed("tokens", lambda: pairs(tokenizer, documents))
    planned = timed("plan", lambda: plan_prefixes(sequences))
    layout = find_attention_layout(model)
    shape = (len(sequences), *layout.shape, layout.head_width("post"))
    with tempfile.TemporaryDirectory() as folder:
        room = allocate_activations(shape, memory=0, folder=Path(folder))
        timed(
            "activations",
            lambda: capture(model, sequences, batch_size=4, layout=layout, allocate=lambda _: room),
        )
    labels, groups = np.arange(len(sequences)) % 2, np.arange(len(sequences)) // 2
    timed("probes", lambda: cross_validate_heads(room, labels, groups, ProbeConfig(solver="newton")))
    return {"sequences": len(sequences), "tokens_planned": planned.num_tokens, **seconds}
