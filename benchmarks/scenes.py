"""smollm2-135m-scenes under a gate in bfloat16: shared prefixes against the model's plain batches.

The check is the result here: how many texts differ from those of one question at a time, with shared prefixes
and in plain batches. Neither is exact in half precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from benchmarks.measure import Result, compare
from training.training_data import eval_set
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.metrics.pope import SPLITS
from truthgate_eval.metrics.yes_no import parse_yes_no
from truthgate_eval.packaged.scenes_llava import SCENES_LLAVA
from truthgate_eval.vision import self_check
from truthgate_eval.vision.loading import LoadOptions, load_vlm
from truthgate_eval.vision.question_engine import ImagePrompt, ImageQuestionEngine

_SCORES, _LAM = "smollm2-135m-instruct__halueval-qa", 0.3
_MOST = 8


def run(name: str, *, quick: bool, rounds: int) -> Iterator[Result]:
    """Yield the comparison."""
    torch.set_num_threads(1)
    vlm = load_vlm(LoadOptions(SCENES_LLAVA, device="cpu", dtype="bfloat16"))
    GateConfig.parse(_SCORES, lam=_LAM, modality="image").apply(vlm.model, vlm.name)
    forward = self_check.load(vlm, find_attention_layout(vlm.model).decoder)
    if not forward.supports_sharing:
        raise RuntimeError(f"{SCENES_LLAVA} cannot share prefixes")
    polls = [poll for split in SPLITS for poll in eval_set("test", 1.0, 2 if quick else 25, split)]
    prompts = [vlm.prompt(poll.question, 1) for poll in polls]

    def plain(size: int) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(polls), size):
            own = slice(start, start + size)
            images = [[poll.image] for poll in polls[own]]
            texts += vlm.generate(prompts[own], images, max_new_tokens=_MOST, do_sample=False)
        return texts

    def shared() -> list[str]:
        engine = ImageQuestionEngine(vlm, forward)
        questions = [
            ImagePrompt(prompt, engine.register_images([poll.image]), partial(list, [poll.image]))
            for prompt, poll in zip(prompts, polls, strict=True)
        ]
        return [str(text) for text in engine.generate(questions, max_new_tokens=_MOST, batch_size=8)]

    yield compare(
        name,
        f"{len(polls)} questions about scenes, bfloat16, {_SCORES} with lam={_LAM}",
        len(polls),
        ("plain batches of 8", lambda: plain(8)),
        ("shared prefixes", shared),
        lambda theirs, ours: against_alone(plain(1), theirs, ours),
        rounds=rounds,
    )


def against_alone(alone: list[str], batches: list[str], shared: list[str]) -> dict[str, Any]:
    """How many texts differ from those of one question at a time, and in how many yes or no differs."""
    differ = {
        name: sum(a != b for a, b in zip(alone, texts, strict=True))
        for name, texts in (("plain", batches), ("shared", shared))
    }
    changed = sum(parse_yes_no(a) != parse_yes_no(b) for a, b in zip(alone, shared, strict=True))
    return {
        "passed": changed == 0, "plain_batches_differ": differ["plain"], "shared_differ": differ["shared"],
        "yes_no_differ": changed,
    }  # fmt: skip
