"""Which tokens a gate acts on: `all`, the `last` one of each pass, or `generated` ones.

A model predicts a token from the one before it. `last` therefore changes every prediction of an answer, and
leaves the prompt's other tokens as they are; `generated` does the same from the answer's second token on. A
log-likelihood is that of decoding the continuation step by step: see `GatedPositions.scoring`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import nn

from truthgate_eval.errors import GateError, check_choice

Positions = Literal["all", "last", "generated"]
POSITIONS: tuple[Positions, ...] = get_args(Positions)


def check_positions(positions: object) -> Positions:
    """The positions of that name.

    Raises:
        GateError: There are none.
    """
    return check_choice("positions", positions, POSITIONS, GateError)


class GatedPositions:
    """Finds the gated tokens of every pass of a decoder.

    A pass after earlier tokens' keys and values is a step of decoding, and all its tokens are generated; any
    other is a prompt.

    Attributes:
        positions: `last` or `generated`.
    """

    def __init__(self, decoder: nn.Module, positions: Positions) -> None:
        self.positions = positions
        self._shape = (0, 0)  # rows and length of the running pass
        self._counts: int | Sequence[int] = 0  # gated tokens at the end of each of its rows
        self._scored: int | Sequence[int] | None = None
        self._hook = decoder.register_forward_pre_hook(self._enter, with_kwargs=True)

    def remove(self) -> None:
        """Watch the decoder no longer."""
        self._hook.remove()

    @contextmanager
    def scoring(self, after_first: int | Sequence[int]) -> Iterator[None]:
        """In this block, passes hold a prompt and a continuation that is scored.

        `last` gates the tokens that predict the continuation's tokens, `generated` the continuation's tokens:
        what step-by-step decoding of the continuation gates.

        Args:
            after_first: How many tokens a pass has from the continuation's first token on, padding on the
                right included, for all rows or for each.
        """
        self._scored = after_first
        try:
            yield
        finally:
            self._scored = None

    def select(self, x: torch.Tensor, gated: torch.Tensor) -> torch.Tensor:
        """`gated` at the gated tokens, else `x`; both [rows, length, features], or rows and length as one."""
        rows, length = self._shape
        if x.numel() != rows * length * x.shape[-1]:
            raise GateError(
                f"positions={self.positions} needs one activation for each token: this layer has "
                f"{tuple(x.shape)} for {rows} x {length} tokens"
            )
        counts = torch.as_tensor(self._counts, device=x.device).reshape(-1, 1)
        is_gated = torch.arange(length, device=x.device) >= length - counts
        return torch.where(is_gated.expand(rows, length).reshape(*x.shape[:-1], 1), gated, x)

    def _enter(self, _decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        embeddings, ids = kwargs.get("inputs_embeds"), kwargs.get("input_ids")
        inputs = next(value for value in (embeddings, ids, *args) if isinstance(value, torch.Tensor))
        self._shape = inputs.shape[0], inputs.shape[1]
        mask = kwargs.get("attention_mask")
        self._check_mask(mask)
        if self._scored is not None:
            extra = 1 if self.positions == "last" else 0
            scored = self._scored
            self._counts = scored + extra if isinstance(scored, int) else [count + extra for count in scored]
            return
        if isinstance(mask, torch.Tensor) and not bool(mask[:, -1].all()):
            raise GateError(f"positions={self.positions} needs batches that are padded on the left")
        if self.positions == "last":
            self._counts = 1
            return
        if kwargs.get("use_cache") is False:
            raise GateError(
                "positions=generated tells generated tokens from the prompt's by the key-value cache, and "
                "this pass has use_cache=False"
            )
        self._counts = inputs.shape[1] if _cached_length(kwargs) else 0

    def _check_mask(self, mask: object) -> None:
        if isinstance(mask, torch.Tensor) and mask.dim() > 2:
            raise GateError(
                f"positions={self.positions} cannot gate a pass with a 4D attention mask (shared prefixes "
                "or a static cache): use engine=off, or positions=all"
            )


def _cached_length(kwargs: dict[str, Any]) -> int:
    """How many tokens' keys and values a decoder was given."""
    # transformers renames the argument from 5.24 on, class by class.
    cache = kwargs.get("cache") if kwargs.get("past_key_values") is None else kwargs["past_key_values"]
    return 0 if cache is None else int(cache.get_seq_length())
