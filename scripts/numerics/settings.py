"""What is run in which ways, and how two runs are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DTYPES = ("float32", "bfloat16")
NEW_TOKENS = 16
CHILD, CHILD_SCORES, CHILD_LAM = "smollm2-135m-scenes", "smollm2-135m-instruct__halueval-qa", 0.3
CHOICE_TASK, TEXT_TASK, PROBE_TASK = "halueval_qa_select", "halueval_qa", "probe_halueval_qa"
POLL_TASK, POLL_LOG_ODDS_TASK = "scenes_random", "scenes_random_logodds"
# No answer is to end before NEW_TOKENS.
GENERATION = {"until": ["\u241e"], "max_gen_toks": NEW_TOKENS, "do_sample": False}


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        documents: Documents whose choices are scored.
        probed: Documents whose answers' activations are taken.
        texts: Greedy texts.
        polls: Questions about scenes.
    """

    documents: int = 24
    probed: int = 12
    texts: int = 8
    polls: int = 12


QUICK = Size(documents=4, probed=2, texts=2, polls=2)


@dataclass(frozen=True)
class Setting:
    """One way to run the same inputs.

    Attributes:
        batch_size: As on either harness's command line.
        engine: `auto` or `off`.
        order: given, reversed or shuffled.
        processes: 1 or 2.
    """

    batch_size: int | str = 1
    engine: str = "auto"
    order: str = "given"
    processes: int = 1

    def __str__(self) -> str:
        order = "" if self.order == "given" else f", {self.order}"
        processes = "" if self.processes == 1 else f", {self.processes} processes"
        return f"engine={self.engine}, batch_size={self.batch_size}{order}{processes}"


PLAIN = Setting(engine="off")
SETTINGS = (
    Setting(8, "off"),
    *(Setting(size) for size in (1, 3, 8, "auto")),
    *(Setting(8, order=order) for order in ("reversed", "shuffled")),
)
TWO_PROCESSES = Setting(8, processes=2)


@dataclass(frozen=True)
class Results:
    """What a run gives.

    Attributes:
        log_likelihoods: Of every choice, in nats.
        activations: [sequences, layers, heads, width], at the last token of each answer.
        texts: Greedy texts.
        poll_log_likelihoods: Of the spellings of yes and no after a question about a scene, in nats.
        poll_texts: Greedy answers to the same questions.
    """

    log_likelihoods: list[float]
    activations: NDArray[np.float32]
    texts: list[str]
    poll_log_likelihoods: list[float]
    poll_texts: list[str]


def differences(found: Results, expected: Results) -> dict[str, float | int]:
    """The figures of one row.

    Returns:
        Largest absolute differences; that of activations over the largest activation of their layer; numbers
        of texts that differ.
    """
    scale = np.abs(expected.activations).max(axis=(0, 2, 3), keepdims=True)
    activations = np.abs(found.activations - expected.activations) / scale
    return {
        "log_likelihood": _largest(found.log_likelihoods, expected.log_likelihoods),
        "activation": float(activations.max()),
        "texts": _differ(found.texts, expected.texts),
        "poll_log_likelihood": _largest(found.poll_log_likelihoods, expected.poll_log_likelihoods),
        "poll_texts": _differ(found.poll_texts, expected.poll_texts),
    }


def _largest(found: Sequence[float], expected: Sequence[float]) -> float:
    return float(np.abs(np.subtract(found, expected, dtype=np.float64)).max())


def _differ(found: Sequence[str], expected: Sequence[str]) -> int:
    return sum(a != b for a, b in zip(found, expected, strict=True))
