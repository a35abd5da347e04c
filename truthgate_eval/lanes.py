"""Rows of a plan as a model takes them: tokens, position ids and the mask that keeps branches apart.

Short rows stand behind one another in a lane, so that little is padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from truthgate_eval.prefix_tree import Row


@dataclass(frozen=True)
class Batch:
    """Some rows as a model takes them: short rows stand one behind another, so that little is padded.

    Attributes:
        tokens: Token ids, int64 [lanes, length], padded to the right.
        positions: Position ids, int64 [lanes, length]; None lets the model count them.
        mask: 0 where a token looks and -inf elsewhere, [lanes, 1, length, trunk + length]; or, for
            lanes of one branch and no trunk, the usual int64 [lanes, length].
        starts: For each row, its lane and where it begins there.
    """

    tokens: torch.Tensor
    positions: torch.Tensor | None
    mask: torch.Tensor
    starts: list[tuple[int, int]] = field(default_factory=list)

    def lasts(self, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        """(lane, place) of every branch's last token, row by row: int64 [branches] each."""
        ends = [
            (lane, start + int(row.places(branch)[-1]))
            for row, (lane, start) in zip(rows, self.starts, strict=True)
            for branch in range(len(row.branches))
        ]
        lanes, places = zip(*ends, strict=True)
        return torch.tensor(lanes), torch.tensor(places)


def make_batch(
    rows: Sequence[Row], *, trunk: int, dtype: torch.dtype, device: torch.device, pack: bool = True
) -> Batch:
    """Tokens, positions and mask of some rows after a trunk of that many tokens.

    Args:
        rows: The rows.
        trunk: Tokens before each of them.
        dtype: The mask's.
        device: The tensors'.
        pack: Whether rows may stand behind one another; without, each has a lane of its own.
    """
    length = max(map(len, rows))
    starts = _pack(rows, length) if pack else [(lane, 0) for lane in range(len(rows))]
    lanes = 1 + max(lane for lane, _ in starts)
    tokens = torch.zeros((lanes, length), dtype=torch.long)
    positions = torch.zeros((lanes, length), dtype=torch.long)
    # A token looks at its own row's prefix and its own branch. Padding is a row of its own.
    owners, branches = torch.full((lanes, length), -1), torch.full((lanes, length), -1)
    for number, (row, (lane, start)) in enumerate(zip(rows, starts, strict=True)):
        own = slice(start, start + len(row))
        tokens[lane, own] = torch.tensor(row.tokens)
        positions[lane, own] = torch.tensor(row.positions)
        branches[lane, own] = torch.tensor(row.segments)
        owners[lane, own] = number
    tokens, owners, branches = tokens.to(device), owners.to(device), branches.to(device)
    if trunk == 0 and lanes == len(rows) and all(len(row.branches) == 1 for row in rows):
        return Batch(tokens, None, (owners >= 0).long(), starts)
    visible = torch.ones((length, length), dtype=torch.bool, device=device).tril()
    visible = visible & (owners[:, None, :] == owners[:, :, None])
    visible &= (branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None])
    # Float, not bool: eager attention adds the mask to its scores, and would add 0 and 1.
    mask = torch.zeros((lanes, 1, length, trunk + length), dtype=dtype, device=device)
    mask[:, 0, :, trunk:].masked_fill_(~visible, -torch.inf)
    return Batch(tokens, positions.to(device) + trunk, mask, starts)


def _pack(rows: Sequence[Row], length: int) -> list[tuple[int, int]]:
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
