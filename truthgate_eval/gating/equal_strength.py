"""The strength of a gate that was given as a divergence, found on prompts that the caller has.

See `docs/method.md#equal-strength`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch

from truthgate_eval.errors import GateError
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate import attach
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.strength import TOLERANCE, find_strength
from truthgate_eval.gating.yes_offset import offset_divergences, yes_tokens

log = logging.getLogger(__name__)

# The search begins on a few prompts, until it is about right there: a pass over all costs much more.
_FEW_PROMPTS, _ROUGHLY = 32, 0.1
_START = 0.1
# How near the divergence on other prompts should be to the target, and how many standard errors that must be.
_WITHIN, _SURE = 0.05, 1.96


class Divergence(Protocol):
    """How far a model is from what it was, on some prompts (`inference.next_token_divergence`).

    Attributes:
        reference: Log-probabilities of the next token after each prompt as they were, float32 [prompts,
            vocabulary].
    """

    reference: torch.Tensor

    def of_each(self) -> torch.Tensor:
        """Divergence of the model as it is now on each prompt, in nats; [prompts]."""

    def of_first(self, count: int) -> Divergence:
        """The same on the first prompts alone, or on all where that is not cheaper."""

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """Values on all prompts, given those on the prompts of `reference`, which may be a process's own."""


def find_equal_strength(
    config: GateConfig, model: Any, name: str, divergence: Divergence, *, tokenizer: Any
) -> GateConfig:
    """Find the strength at which a gate's, or a yes offset's, divergence is the target.

    Args:
        config: A pending configuration.
        model: The transformers model, without a gate; it has none afterwards either.
        name: The model's name, for messages.
        divergence: From the model as it is.
        tokenizer: The model's tokenizer, for the tokens of yes.

    Returns:
        The configuration with the number; nothing is applied to the model yet.

    Raises:
        GateError: No strength reaches the target, or the gate does not fit the model.
        ScoresError: The scores do not fit the model.
    """
    target = config.target
    assert target is not None
    try:
        strength, of_each = _search(config, model, name, divergence, tokenizer)
    except GateError as error:
        raise GateError(f"{target.text}: {error}") from error
    prompts, reached = len(of_each), float(of_each.mean())
    stderr = float(of_each.std(correction=0)) / math.sqrt(max(prompts - 1, 1))
    log.info(
        "%s: %s=%.6g moves the next-token distribution of %s by %.4g nats (stderr %.2g) on %d prompts",
        target.text, target.argument, strength, name, reached, stderr, prompts,
    )  # fmt: skip
    needed = math.ceil(prompts * (_SURE * stderr / (_WITHIN * reached)) ** 2)
    if needed > prompts:
        log.warning(
            "%s: on other prompts of the task the divergence may be %.0f %% off; kl_prompts=%d would bring "
            "it within %.0f %%",
            target.text, 100 * _SURE * stderr / reached, needed, 100 * _WITHIN,
        )  # fmt: skip
    return config.with_strength(strength, reached, stderr, prompts)


def _search(
    config: GateConfig, model: Any, name: str, divergence: Divergence, tokenizer: Any
) -> tuple[float, torch.Tensor]:
    """The strength, and the divergence on each prompt at it."""
    assert config.target is not None
    target = config.target.target
    if config.target.argument == "yes_offset":
        tokens = yes_tokens(tokenizer)
        reference = divergence.reference

        def of_offset(offset: float) -> torch.Tensor:
            own = offset_divergences(reference, tokens, offset) if len(reference) else torch.zeros(0)
            return divergence.gather(own)

        return _find(of_offset, target)
    layout = find_attention_layout(model)
    gates = config.gates(layout, name)
    with attach(model, gates(0.0), layout=layout) as handle:

        def at(strength: float, measured: Divergence) -> torch.Tensor:
            handle.set(gates(strength))
            return measured.of_each()

        start = _START
        few = divergence.of_first(_FEW_PROMPTS)
        if few is not divergence:
            start, _ = _find(partial(at, measured=few), target, tolerance=_ROUGHLY)
        return _find(partial(at, measured=divergence), target, start=start)


def _find(
    measure: Callable[[float], torch.Tensor],
    target: float,
    *,
    tolerance: float = TOLERANCE,
    start: float = _START,
) -> tuple[float, torch.Tensor]:
    """The strength whose mean divergence is the target, and the divergence on each prompt at it."""
    of_each = torch.zeros(0)

    def mean(strength: float) -> float:
        nonlocal of_each
        of_each = measure(strength)
        return float(of_each.mean())

    strength, _ = find_strength(mean, target, tolerance=tolerance, start=start)
    return strength, of_each  # the search ends with the strength that it returns
