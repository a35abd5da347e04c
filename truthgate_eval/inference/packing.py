"""Packed prompts as a model's input: token ids, position ids and the mask that keeps suffixes apart.

Short packed prompts stand one after another in a batch row, so that little is padded. See
`docs/performance.md#how-the-engine-works`, "Packing".
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from truthgate_eval.inference.prefix_plan import PackedPrompt

# Position ids of a sequence's tokens and of the token after them, int64 [axes, n + 1].
PositionIds = Callable[[Sequence[int]], NDArray[np.int64]]


@dataclass(frozen=True)
class PackedBatch:
    """Some packed prompts as a model's input.

    Attributes:
        token_ids: int64 [rows, length], padded on the right.
        position_ids: int64 [rows, length], or [axes, rows, length] for models with several position axes;
            None lets the model count tokens.
        mask: 0 where a token attends and -inf elsewhere, [rows, 1, length, prefix + length]; or, where every
            row is one sequence without a shared prefix, the usual int64 [rows, length].
        offsets: For each packed prompt, its row and the column where it begins.
        position_offsets: For each suffix, prompt by prompt, the position after it less the number of tokens
            up to there; empty where that is 0 for all.
        cache_key: Cache key of this batch: its prompts and the shared prefix before them. None for decode
            steps, which are never cached.
    """

    token_ids: torch.Tensor
    position_ids: torch.Tensor | None
    mask: torch.Tensor
    offsets: list[tuple[int, int]] = field(default_factory=list)
    position_offsets: list[int] = field(default_factory=list)
    cache_key: Hashable = None

    def last_tokens(self, prompts: Sequence[PackedPrompt]) -> tuple[torch.Tensor, torch.Tensor]:
        """Row and column of every suffix's last token, prompt by prompt: int64 [suffixes] each."""
        ends = [
            (row, offset + int(prompt.columns(suffix)[-1]))
            for prompt, (row, offset) in zip(prompts, self.offsets, strict=True)
            for suffix in range(len(prompt.suffixes))
        ]
        rows, columns = zip(*ends, strict=True)
        return torch.tensor(rows), torch.tensor(columns)


def make_batch(
    prompts: Sequence[PackedPrompt],
    *,
    prefix: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    pack: bool = True,
    position_ids: PositionIds | None = None,
) -> PackedBatch:
    """Token ids, position ids and mask of some packed prompts after a shared prefix.

    Args:
        prompts: The packed prompts.
        prefix: Token ids of the shared prefix before each of them.
        dtype: Data type of the mask.
        device: Where the tensors go.
        pack: Whether several prompts may stand in one row.
        position_ids: For models that do not number tokens one by one.
    """
    # Rows as long as the shared prefix: more prompts attend to each copy of it, and no more is padded than
    # that saves.
    capacity = max([*map(len, prompts), len(prefix)])
    offsets = _first_fit(prompts, capacity) if pack else [(row, 0) for row in range(len(prompts))]
    cache_key = tuple(prompts), tuple(prefix)
    rows = 1 + max(row for row, _ in offsets)
    length = max(offset + len(prompt) for prompt, (_, offset) in zip(prompts, offsets, strict=True))
    token_ids = torch.zeros((rows, length), dtype=torch.long)
    # Which prompt and which of its segments each token belongs to; padding counts as a prompt of its own.
    owners, segments = torch.full((rows, length), -1), torch.full((rows, length), -1)
    for number, (prompt, (row, offset)) in enumerate(zip(prompts, offsets, strict=True)):
        own = slice(offset, offset + len(prompt))
        token_ids[row, own] = torch.tensor(prompt.token_ids)
        segments[row, own] = torch.tensor(prompt.segment_ids)
        owners[row, own] = number
    token_ids, owners, segments = token_ids.to(device), owners.to(device), segments.to(device)
    plain = not prefix and rows == len(prompts) and all(len(prompt.suffixes) == 1 for prompt in prompts)
    if plain and position_ids is None:
        return PackedBatch(token_ids, None, (owners >= 0).long(), offsets, cache_key=cache_key)
    positions, position_offsets = _positions(prompts, offsets, (rows, length), prefix, position_ids)
    mask = (owners >= 0).long() if plain else _attention_mask(owners, segments, len(prefix), dtype)
    return PackedBatch(token_ids, positions.to(device), mask, offsets, position_offsets, cache_key)


def _attention_mask(
    owners: torch.Tensor, segments: torch.Tensor, prefix_length: int, dtype: torch.dtype
) -> torch.Tensor:
    """Mask [rows, 1, length, prefix + length]: tokens attend to their prefixes and their own suffix."""
    rows, length = owners.shape
    visible = torch.ones((length, length), dtype=torch.bool, device=owners.device).tril()
    visible = visible & (owners[:, None, :] == owners[:, :, None])
    visible &= (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    # Float, not bool: eager attention adds the mask to its scores, and would add 0 and 1.
    mask = torch.zeros((rows, 1, length, prefix_length + length), dtype=dtype, device=owners.device)
    mask[:, 0, :, prefix_length:].masked_fill_(~visible, -torch.inf)
    return mask


def _positions(
    prompts: Sequence[PackedPrompt],
    offsets: list[tuple[int, int]],
    shape: tuple[int, int],
    prefix: Sequence[int],
    position_ids: PositionIds | None,
) -> tuple[torch.Tensor, list[int]]:
    """Position ids [rows, length] or [axes, rows, length], and `position_offsets` of the batch."""
    if position_ids is None:
        counted = torch.full(shape, len(prefix))
        for prompt, (row, offset) in zip(prompts, offsets, strict=True):
            counted[row, offset : offset + len(prompt)] = torch.tensor(prompt.position_ids) + len(prefix)
        return counted, []
    of_prompts, position_offsets = [], []
    for prompt in prompts:
        before = len(prefix) + len(prompt.prefix)
        own = [position_ids([*prefix, *prompt.prefix, *suffix]) for suffix in prompt.suffixes]
        position_offsets += [int(ids[0, -1]) - (ids.shape[1] - 1) for ids in own]
        of_prompts.append(
            np.concatenate([own[0][:, len(prefix) : before], *(ids[:, before:-1] for ids in own)], 1)
        )
    positions = torch.zeros((len(of_prompts[0]), *shape), dtype=torch.long)
    for ids, prompt, (row, offset) in zip(of_prompts, prompts, offsets, strict=True):
        positions[:, row, offset : offset + len(prompt)] = torch.from_numpy(ids)
    return positions, position_offsets


def _first_fit(prompts: Sequence[PackedPrompt], capacity: int) -> list[tuple[int, int]]:
    """Row and offset of each prompt, in the first row of `capacity` tokens that has room for it."""
    filled: list[int] = []
    offsets = []
    for prompt in prompts:
        row = next((i for i, used in enumerate(filled) if used + len(prompt) <= capacity), len(filled))
        if row == len(filled):
            filled.append(0)
        offsets.append((row, filled[row]))
        filled[row] += len(prompt)
    return offsets
