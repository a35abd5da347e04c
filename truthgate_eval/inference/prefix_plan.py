"""What token sequences have in common, planned so that a model computes it once.

Equal sequences are asked once. A *trunk* is a prefix of many sequences, computed in a pass of its own; a
*row* is a prefix and the branches after it, computed in one pass. No tensors and no model here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

# Costs are counted in tokens through the weights. A row's attention is dense: L tokens cost L * L / _DENSE
# more. The hidden size of a 135M model makes it 3,000, that of a larger model more.
_ATTENTION_COST_SCALE = 3000.0
# A trunk is a pass of batch 1 that the others wait for: by default it must save this many tokens.
_PREFIX_PASS_COST = 256.0
# A node of more sequences is not tried as rows: a trunk serves those, and planning stays linear.
_MAX_SUFFIXES = 64


@dataclass(frozen=True)
class PackedPrompt:
    """`[prefix, branch, branch, ...]`: every branch sees the trunk, the prefix and itself.

    Attributes:
        prefix: Token ids that all branches share, after the trunk.
        branches: What each sequence has after the prefix; at least one token each.
        members: The distinct sequence that each branch belongs to.
    """

    prefix: tuple[int, ...]
    suffixes: tuple[tuple[int, ...], ...]
    sequence_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prefix) + sum(map(len, self.suffixes))

    @property
    def token_ids(self) -> list[int]:
        """Token ids, as they stand in the row."""
        return [*self.prefix, *(token for branch in self.suffixes for token in branch)]

    @property
    def segment_ids(self) -> list[int]:
        """For each token 0 in the prefix, else 1 + its branch: a token sees 0 and its own segment."""
        return [0] * len(self.prefix) + [i + 1 for i, branch in enumerate(self.suffixes) for _ in branch]

    @property
    def position_ids(self) -> list[int]:
        """Each token's position after the trunk; every branch starts anew after the prefix."""
        start = len(self.prefix)
        return [*range(start), *(start + i for branch in self.suffixes for i in range(len(branch)))]

    def columns(self, suffix: int) -> NDArray[np.int64]:
        """Where one sequence's tokens after the trunk stand in the row."""
        before = len(self.prefix) + sum(map(len, self.suffixes[:suffix]))
        own = np.arange(before, before + len(self.suffixes[suffix]))
        return np.concatenate([np.arange(len(self.prefix)), own])

    def split(self) -> tuple[PackedPrompt, PackedPrompt]:
        """Two rows with half of the branches each, for when memory does not hold the whole."""
        half = len(self.suffixes) // 2
        return (
            PackedPrompt(self.prefix, self.suffixes[:half], self.sequence_ids[:half]),
            PackedPrompt(self.prefix, self.suffixes[half:], self.sequence_ids[half:]),
        )


@dataclass(frozen=True)
class PrefixGroup:
    """Rows after one trunk; an empty trunk is none."""

    prefix: tuple[int, ...]
    prompts: tuple[PackedPrompt, ...]


@dataclass(frozen=True)
class PrefixPlan:
    """How to compute some sequences.

    Attributes:
        groups: What to run.
        kinds: For each sequence that was asked, its distinct sequence: the number in `Row.members`.
        distinct: How many distinct sequences there are.
    """

    groups: tuple[PrefixGroup, ...]
    distinct_ids: tuple[int, ...]
    num_distinct: int

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model."""
        return sum(len(group.prefix) + sum(map(len, group.prompts)) for group in self.groups)


@dataclass
class _Node:
    """Sequences first..last of the sorted list, which share `depth` tokens."""

    depth: int
    first: int
    last: int
    children: list[_Node] = field(default_factory=list)
    reach: int = 0  # how long a trunk may be: up to the first position that is read
    cost: float = 0.0
    rows: int = 0  # of the best rows below, how many there are
    tokens: int = 0  # and how long they are together
    cuts: list[int] | None = None  # the rows' first sequences, where rows begin here; None: below
    total: float = 0.0  # cost with trunks


def plan_prefixes(
    sequences: Sequence[Sequence[int]],
    *,
    first_read_positions: Sequence[int] | None = None,
    share: bool = True,
    max_shared_length: float = math.inf,
    prefix_pass_cost: float = _PREFIX_PASS_COST,
) -> PrefixPlan:
    """Plan the least tokens in which every sequence can be computed.

    Args:
        sequences: Token ids; each sequence at least one token.
        read_from: For each sequence, the first position that will be read; by default its last
            token. A trunk ends before it.
        share: Whether prefixes may be shared; without, every distinct sequence is a row of its own.
        longest_row: The most tokens that a trunk and a row of several branches may have together.
        prefix_pass_cost: How many tokens' time a pass of its own costs, however short.

    Returns:
        The plan. Its cost in time is that of sorting, and linear otherwise.
    """
    kinds, distinct, first_read = _distinct(sequences, first_read_positions)
    order = sorted(range(len(distinct)), key=distinct.__getitem__)
    if not share or len(order) < 2:
        rows = tuple(PackedPrompt((), (distinct[i],), (i,)) for i in order)
        return PrefixPlan((PrefixGroup((), rows),) if rows else (), tuple(kinds), len(distinct))
    own, reads = [distinct[i] for i in order], [first_read[i] for i in order]
    groups = _groups(_Ordered(own, order, reads, max_shared_length, prefix_pass_cost))
    return PrefixPlan(tuple(groups), tuple(kinds), len(distinct))


def _distinct(
    sequences: Sequence[Sequence[int]], read_from: Sequence[int] | None
) -> tuple[list[int], list[tuple[int, ...]], list[int]]:
    """(the distinct sequence of each, the distinct ones, the first position read of each of these)."""
    numbers: dict[tuple[int, ...], int] = {}
    first_read: list[int] = []
    kinds = []
    for i, sequence in enumerate(sequences):
        tokens = tuple(sequence)
        if not tokens:
            raise ValueError(f"sequence {i} is empty")
        first = len(tokens) - 1 if read_from is None else read_from[i]
        kind = numbers.setdefault(tokens, len(numbers))
        if kind == len(first_read):
            first_read.append(first)
        first_read[kind] = min(first_read[kind], first)
        kinds.append(kind)
    return kinds, list(numbers), first_read


class _Ordered:
    """The sorted sequences, and how much neighbours share."""

    def __init__(
        self, tokens: list[tuple[int, ...]], members: list[int], first_read: list[int], *limits: float
    ) -> None:
        self.tokens, self.members, self.first_read = tokens, members, first_read
        self.longest_row, self.trunk_cost = limits
        self.lengths = [len(sequence) for sequence in tokens]
        arrays = [np.asarray(sequence) for sequence in tokens]
        self.shared = [_common(a, b) for a, b in itertools.pairwise(arrays)]

    def prefix(self, first: int, last: int) -> int:
        """Tokens that sequences first..last share, with one left to each."""
        shortest = min(self.lengths[first : last + 1]) - 1
        return min([*self.shared[first:last], shortest])

    def row(self, first: int, last: int, base: int) -> PackedPrompt:
        """The row of sequences first..last after a trunk of `base` tokens."""
        # A sequence alone has nothing to share: all of it is its branch.
        depth = base if first == last else max(base, self.prefix(first, last))
        return PackedPrompt(
            self.tokens[first][base:depth],
            tuple(sequence[depth:] for sequence in self.tokens[first : last + 1]),
            tuple(self.members[first : last + 1]),
        )


def _common(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """Length of the longest common prefix."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if different.size else length


def _groups(ordered: _Ordered) -> Iterator[PrefixGroup]:
    """Trunks that pay, each with its rows; then the rows of what is left."""
    root = _tree(ordered, 0, len(ordered.tokens) - 1, base=0)
    rest: list[PackedPrompt] = []
    stack = [root]
    while stack:
        node = stack.pop()
        if node.total < min(node.cost, _below(node)):
            below = _tree(ordered, node.first, node.last, base=node.reach)
            yield PrefixGroup(
                ordered.tokens[node.first][: node.reach], tuple(_rows(ordered, below, node.reach))
            )
        elif node.cost <= _below(node):
            rest += _rows(ordered, node, 0)
        else:
            stack += node.children
    if rest:
        yield PrefixGroup((), tuple(rest))


def _tree(ordered: _Ordered, first: int, last: int, base: int) -> _Node:
    """The tree of common prefixes of first..last, each node with its best cost after `base` tokens."""
    stack: list[_Node] = []
    for i in range(first, last + 1):
        node = _Node(ordered.lengths[i], i, i)
        _settle(ordered, node, base)
        shared = ordered.shared[i] if i < last else -1
        while stack and stack[-1].depth > shared:
            stack[-1].children.append(node)
            stack[-1].last = i
            node = stack.pop()
            _settle(ordered, node, base)
        if stack and stack[-1].depth == shared:
            stack[-1].children.append(node)
        elif shared >= 0:
            stack.append(_Node(shared, node.first, i, [node]))
    return node


def _settle(ordered: _Ordered, node: _Node, base: int) -> None:
    """Choose between rows that begin at this node and what its children chose."""
    if not node.children:
        length = ordered.lengths[node.first] - base
        node.cost, node.rows, node.tokens, node.cuts = _row_cost(length), 1, length, [node.first]
        node.reach = ordered.first_read[node.first]
        node.total = node.cost
        return
    node.cost = sum(child.cost for child in node.children)
    node.rows = sum(child.rows for child in node.children)
    node.tokens = sum(child.tokens for child in node.children)
    count = node.last - node.first + 1
    if node.depth > base and count <= _MAX_SUFFIXES:
        cuts, cost, tokens = _cut(ordered, node, base)
        if cost < node.cost:
            node.cost, node.rows, node.tokens, node.cuts = cost, len(cuts), tokens, cuts
    node.reach = min(node.depth, *(child.reach for child in node.children))
    # A row behind a trunk is shorter by it, also as what asks; a trunk's attention has no mask: half.
    saved = node.reach * (node.rows + node.tokens / _ATTENTION_COST_SCALE)
    trunk = node.reach + node.reach * node.reach / (2 * _ATTENTION_COST_SCALE) + ordered.trunk_cost
    node.total = min(node.cost, _below(node), trunk + node.cost - saved)


def _below(node: _Node) -> float:
    """The best cost of a node's children, each by itself."""
    return sum(child.total for child in node.children) if node.children else node.cost


def _row_cost(length: int) -> float:
    return length + length * length / _ATTENTION_COST_SCALE


def _cut(ordered: _Ordered, node: _Node, base: int) -> tuple[list[int], float, int]:
    """(first sequences, cost, tokens) of rows with this node's prefix, filled up to the cheapest length."""
    depth = max(base, min(node.depth, ordered.prefix(node.first, node.last))) - base
    # The length at which a branch costs least: more branches share the prefix, but attention is dense.
    best = min(depth + (depth * (_ATTENTION_COST_SCALE + depth)) ** 0.5, ordered.longest_row - base)
    cuts, cost, tokens, length = [node.first], 0.0, 0, depth
    for i in range(node.first, node.last + 1):
        own = ordered.lengths[i] - base - depth
        if i > cuts[-1] and length + own > best:
            cost, tokens = cost + _row_cost(length), tokens + length
            cuts.append(i)
            length = depth
        length += own
    return cuts, cost + _row_cost(length), tokens + length


def _rows(ordered: _Ordered, root: _Node, base: int) -> Iterator[PackedPrompt]:
    """The rows that were chosen below a node."""
    stack = [root]
    while stack:
        node = stack.pop()
        if node.cuts is None:
            stack += node.children
            continue
        ends = [*(cut - 1 for cut in node.cuts[1:]), node.last]
        for first, last in zip(node.cuts, ends, strict=True):
            yield ordered.row(first, last, base)
