"""Rows of a plan as a model takes them: tokens, position ids and the mask that keeps branches apart.

Short rows stand behind one another in a lane, so that little is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from truthgate_eval.inference.prefix_plan import PackedPrompt

# Position ids of a sequence's tokens and of the one after them, int64 [axes, n + 1].
PositionIds = Callable[[Sequence[int]], NDArray[np.int64]]


@dataclass(frozen=True)
class PackedBatch:
    """Some rows as a model takes them: short rows stand one behind another, so that little is padded.

    Attributes:
        tokens: Token ids, int64 [lanes, length], padded to the right.
        positions: Position ids, int64 [lanes, length], or [axes, lanes, length] where a model turns keys
            along several axes; None lets the model count them.
        mask: 0 where a token looks and -inf elsewhere, [lanes, 1, length, trunk + length]; or, for
            lanes of one branch and no trunk, the usual int64 [lanes, length].
        starts: For each row, its lane and where it begins there.
        shifts: For each branch, row by row, how far the position after it is from the number of tokens
            up to it; none where that is 0 everywhere.
        key: What tells these rows, after this trunk, from others; None for tokens that were decoded.
    """

    token_ids: torch.Tensor
    position_ids: torch.Tensor | None
    mask: torch.Tensor
    offsets: list[tuple[int, int]] = field(default_factory=list)
    position_offsets: list[int] = field(default_factory=list)
    cache_key: Hashable = None

    def last_tokens(self, prompts: Sequence[PackedPrompt]) -> tuple[torch.Tensor, torch.Tensor]:
        """(lane, place) of every branch's last token, row by row: int64 [branches] each."""
        ends = [
            (lane, start + int(row.columns(branch)[-1]))
            for row, (lane, start) in zip(prompts, self.offsets, strict=True)
            for branch in range(len(row.suffixes))
        ]
        lanes, places = zip(*ends, strict=True)
        return torch.tensor(lanes), torch.tensor(places)


def make_batch(
    prompts: Sequence[PackedPrompt],
    *,
    prefix: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    pack: bool = True,
    position_ids: PositionIds | None = None,
) -> PackedBatch:
    """Tokens, positions and mask of some rows after a trunk.

    Args:
        rows: The rows.
        trunk: The tokens before each of them.
        dtype: The mask's.
        device: The tensors'.
        pack: Whether rows may stand behind one another; without, each has a lane of its own.
        positions: Where a sequence's tokens stand; without, tokens are counted.
    """
    # A lane as long as the trunk looks at it once for many rows, and wastes no more than it saves.
    room = max([*map(len, prompts), len(prefix)])
    starts = _pack(prompts, room) if pack else [(lane, 0) for lane in range(len(prompts))]
    key = tuple(prompts), tuple(prefix)
    lanes = 1 + max(lane for lane, _ in starts)
    length = max(start + len(row) for row, (_, start) in zip(prompts, starts, strict=True))
    tokens = torch.zeros((lanes, length), dtype=torch.long)
    # A token looks at its own row's prefix and its own branch. Padding is a row of its own.
    owners, branches = torch.full((lanes, length), -1), torch.full((lanes, length), -1)
    for number, (row, (lane, start)) in enumerate(zip(prompts, starts, strict=True)):
        own = slice(start, start + len(row))
        tokens[lane, own] = torch.tensor(row.token_ids)
        branches[lane, own] = torch.tensor(row.segment_ids)
        owners[lane, own] = number
    tokens, owners, branches = tokens.to(device), owners.to(device), branches.to(device)
    alone = not prefix and lanes == len(prompts) and all(len(row.suffixes) == 1 for row in prompts)
    if alone and position_ids is None:
        return PackedBatch(tokens, None, (owners >= 0).long(), starts, cache_key=key)
    placed, shifts = _places(prompts, starts, (lanes, length), prefix, position_ids)
    placed = placed.to(device)
    if alone:
        return PackedBatch(tokens, placed, (owners >= 0).long(), starts, shifts, key)
    visible = torch.ones((length, length), dtype=torch.bool, device=device).tril()
    visible = visible & (owners[:, None, :] == owners[:, :, None])
    visible &= (branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None])
    # Float, not bool: eager attention adds the mask to its scores, and would add 0 and 1.
    mask = torch.zeros((lanes, 1, length, len(prefix) + length), dtype=dtype, device=device)
    mask[:, 0, :, len(prefix) :].masked_fill_(~visible, -torch.inf)
    return PackedBatch(tokens, placed, mask, starts, shifts, key)


def _places(
    rows: Sequence[PackedPrompt],
    starts: list[tuple[int, int]],
    shape: tuple[int, int],
    trunk: Sequence[int],
    positions: PositionIds | None,
) -> tuple[torch.Tensor, list[int]]:
    """(position ids [lanes, length] or [axes, lanes, length], shift of each branch)."""
    if positions is None:
        placed = torch.full(shape, len(trunk))
        for row, (lane, start) in zip(rows, starts, strict=True):
            placed[lane, start : start + len(row)] = torch.tensor(row.position_ids) + len(trunk)
        return placed, []
    parts, shifts = [], []
    for row in rows:
        before = len(trunk) + len(row.prefix)
        own = [positions([*trunk, *row.prefix, *branch]) for branch in row.suffixes]
        shifts += [int(found[0, -1]) - (found.shape[1] - 1) for found in own]
        parts.append(
            np.concatenate([own[0][:, len(trunk) : before], *(found[:, before:-1] for found in own)], 1)
        )
    several = torch.zeros((len(parts[0]), *shape), dtype=torch.long)
    for part, row, (lane, start) in zip(parts, rows, starts, strict=True):
        several[:, lane, start : start + len(row)] = torch.from_numpy(part)
    return several, shifts


def _pack(rows: Sequence[PackedPrompt], length: int) -> list[tuple[int, int]]:
    """(lane, start) of each row, first fit into lanes of `length` tokens."""
    used: list[int] = []
    starts = []
    for row in rows:
        lane = next((i for i, taken in enumerate(used) if taken + len(row) <= length), len(used))
        if lane == len(used):
            used.append(0)
        starts.append((lane, used[lane]))
        used[lane] += len(row)
    return starts
