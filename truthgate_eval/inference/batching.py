"""How many packed prompts go into one batch, and what happens where memory ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from truthgate_eval.inference import tuning
from truthgate_eval.inference.prefix_plan import PackedPrompt
from truthgate_eval.memory import is_out_of_memory

log = logging.getLogger(__name__)

# A number of sequences, or `auto`.
BatchSize = int | Literal["auto"]


class TokenBudget:
    """The most tokens of one batch. Halved for good when memory does not hold a batch.

    See `docs/performance.md#batches`.

    Attributes:
        tokens: The number of tokens.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    @classmethod
    def for_batch_size(
        cls,
        batch_size: int | str,
        sequences: Sequence[Sequence[int]],
        device: torch.device,
        *,
        max_new_tokens: int = 0,
    ) -> TokenBudget:
        """As many tokens as `batch_size` of the longest sequences have.

        Args:
            batch_size: A number of sequences; `auto` begins with as many tokens as keep the device busy.
            sequences: Token ids.
            device: Where they will run.
            max_new_tokens: The most tokens that are decoded after each sequence.
        """
        if isinstance(batch_size, int):
            return cls(batch_size * (max(map(len, sequences), default=1) + max_new_tokens))
        return cls(tuning.auto_batch_tokens(device))

    def next_batch_size(self, prompts: Sequence[PackedPrompt], max_new_tokens: int = 0) -> int:
        """How many of these packed prompts, from the first on, make the next batch; at least one."""
        tokens = 0
        for count, prompt in enumerate(prompts):
            tokens += len(prompt) + len(prompt.suffixes) * max_new_tokens
            if tokens > self.tokens:
                return max(1, count)
        return len(prompts)

    def batches(self, prompts: Sequence[PackedPrompt]) -> list[list[PackedPrompt]]:
        """The batches in which `run_batches` runs these packed prompts where memory holds them."""
        waiting, found = _longest_first(prompts), []
        while waiting:
            count = self.next_batch_size(waiting)
            found.append(waiting[:count])
            waiting = waiting[count:]
        return found

    def run_batches(
        self,
        prompts: Sequence[PackedPrompt],
        run: Callable[[list[PackedPrompt]], None],
        *,
        max_new_tokens: int = 0,
    ) -> None:
        """Run all packed prompts in batches, the longest first, so that memory ends early if it ends at all.

        A batch that memory does not hold is tried again with half as many tokens. A single packed prompt that
        it does not hold is split by its suffixes.

        Args:
            prompts: What to run.
            run: Runs one batch. It must leave nothing behind when it raises an out-of-memory error.
            max_new_tokens: The most tokens that are decoded after each suffix.
        """
        waiting = _longest_first(prompts)
        while waiting:
            batch = waiting[: self.next_batch_size(waiting, max_new_tokens)]
            try:
                run(batch)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or (len(batch) == 1 and len(batch[0].suffixes) == 1):
                    raise
                torch.cuda.empty_cache()
                if len(batch) == 1:
                    waiting = [*batch[0].split(), *waiting[1:]]
                self.tokens = max(1, min(self.tokens, sum(map(len, batch))) // 2)
                log.warning("out of memory: continuing with batches of %d tokens", self.tokens)
                continue
            waiting = waiting[len(batch) :]


def _longest_first(prompts: Sequence[PackedPrompt]) -> list[PackedPrompt]:
    return sorted(prompts, key=lambda prompt: -len(prompt))
