"""HaluEval prompts after one long instruction: `gated_hf` without a gate against lm-eval's `hf`.

The log-likelihoods are of Yes after HaluEval's question. The generated texts are free answers instead: of a
small model's Yes and No there would be two different texts in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from benchmarks.measure import Result, compare
from benchmarks.work import free_answers, load_model, yes_no_prompts
from truthgate_eval.harness.lm_eval.model import GatedHF

DEVICES = ("cpu", "cuda")


def run(name: str, *, quick: bool, rounds: int, device: str = "cpu") -> Iterator[Result]:
    """Yield the comparison."""
    model, tokenizer = load_model(device)
    generate = name.endswith("generate")
    if generate:
        prompts, shared = free_answers(tokenizer, 16 if quick else 208)
    else:
        prompts, shared = yes_no_prompts(tokenizer, 16 if quick else 104)
    options = {"tokenizer": tokenizer, "batch_size": 8}
    theirs, ours = HFLM(model, **options), GatedHF(model, scores="none", **options)
    requests = _generate(prompts) if generate else _choose(prompts)
    method = "generate_until" if generate else "loglikelihood"
    yield compare(
        name,
        f"{len(requests)} requests after a {shared}-token instruction",
        len(requests),
        ("lm-eval hf, batch_size=8", lambda: getattr(theirs, method)(requests, disable_tqdm=True)),
        ("gated_hf, batch_size=8", lambda: getattr(ours, method)(requests, disable_tqdm=True)),
        checked(same_texts if generate else same_likelihoods, device),
        rounds=rounds,
        device=device,
    )


def checked(check: Callable[[Any, Any], dict[str, Any]], device: str) -> Callable[[Any, Any], dict[str, Any]]:
    """A comparison of outputs; in bfloat16, where batches round differently, only of their number."""
    if device == "cpu":
        return check
    return lambda theirs, ours: {**check(theirs, ours), "passed": len(theirs) == len(ours)}


def _generate(prompts: list[str]) -> list[Instance]:
    settings = {"until": ["\n"], "max_gen_toks": 16, "do_sample": False}
    return [Instance("generate_until", {}, (prompt, dict(settings)), i) for i, prompt in enumerate(prompts)]


def _choose(prompts: list[str]) -> list[Instance]:
    """One request for each prompt: of two with one input, `hf` computes only one as well."""
    return [Instance("loglikelihood", {}, (prompt, " Yes"), i) for i, prompt in enumerate(prompts)]


def same_texts(theirs: list[str], ours: list[str]) -> dict[str, Any]:
    """Every text identical."""
    different = sum(a != b for a, b in zip(theirs, ours, strict=True))
    return {
        "passed": different == 0,
        "texts": len(theirs),
        "different": different,
        "distinct": len(set(theirs)),
    }


def same_likelihoods(theirs: list[tuple[float, bool]], ours: list[tuple[float, bool]]) -> dict[str, Any]:
    """Log-probabilities within 1e-4, greedy flags equal."""
    error = max(abs(a[0] - b[0]) for a, b in zip(theirs, ours, strict=True))
    flags = sum(a[1] != b[1] for a, b in zip(theirs, ours, strict=True))
    return {"passed": error < 1e-4 and flags == 0, "largest_difference": error, "different_flags": flags}
