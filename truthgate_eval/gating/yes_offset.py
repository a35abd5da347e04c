"""A constant added to the logits of yes: the baseline that says yes more often and knows nothing more."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from truthgate_eval.errors import GateError

# Spellings of yes and of no that correspond, as answers to yes/no tasks have them.
_SPELLINGS = (("Yes", "No"), (" Yes", " No"), ("yes", "no"), (" yes", " no"))


def yes_tokens(tokenizer: Any) -> list[int]:
    """The tokens that decide for yes: of each spelling, the first token that the same spelling of no has not.

    A space that is a token of its own begins yes and no alike, and is not among them.

    Args:
        tokenizer: A tokenizer of transformers.

    Raises:
        GateError: It writes yes and no alike.
    """
    found: set[int] = set()
    for spellings in _SPELLINGS:
        pair = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in spellings]
        different = [yes for yes, no in zip(*pair, strict=False) if yes != no]
        found.update(different[:1])
    if not found:
        raise GateError("yes_offset: the tokenizer has no token for yes that it does not have for no")
    return sorted(found)


def offset_divergence(log_probs: torch.Tensor, tokens: list[int], offset: float) -> float:
    """Mean over prompts of `offset_divergences`, in nats."""
    return float(offset_divergences(log_probs, tokens, offset).mean())


def offset_divergences(log_probs: torch.Tensor, tokens: list[int], offset: float) -> torch.Tensor:
    """Divergence of a model from itself with a constant added to the logits of some tokens.

    With P the probability of the tokens and b the constant, KL = log(1 - P + P e^b) - b P: no pass of the
    model is needed.

    Args:
        log_probs: The model's own next-token distributions, float32 [prompts, vocabulary].
        tokens: Ids of the tokens.
        offset: The constant, in units of logits.

    Returns:
        float64 [prompts], KL(without || with) in nats.
    """
    share = log_probs[:, tokens].double().exp().sum(dim=-1)
    # log(1 - P + P e^b) without an e^b that overflows.
    rest = torch.log1p(-share.clamp(max=1.0))
    return torch.logaddexp(rest, share.log() + offset) - offset * share


def add_yes_offset(model: Any, tokenizer: Any, offset: float) -> Callable[[], None]:
    """Add a constant to the logits of `yes_tokens` in all that a model computes until it is taken back.

    It is added to what `forward` returns, and not to the output of the language-model head: some models
    scale or cap logits after that. `forward` is replaced, and not hooked, for wrappers that call it directly.

    Args:
        model: A transformers model, which PEFT may have wrapped.
        tokenizer: Its tokenizer.
        offset: What to add; 0 leaves the model alone.

    Returns:
        Takes the offset back.

    Raises:
        GateError: The tokenizer writes yes and no alike.
    """
    if not offset:
        return lambda: None
    tokens = torch.tensor(yes_tokens(tokenizer))
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    forward = inner.forward

    @functools.wraps(forward)
    def with_offset(*args: Any, **options: Any) -> Any:
        output = forward(*args, **options)
        output.logits[..., tokens.to(output.logits.device)] += offset
        return output

    def take_back() -> None:
        inner.forward = forward

    inner.forward = with_offset
    return take_back
