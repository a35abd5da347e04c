"""Which prefixes are worth computing once: the algorithm behind `prefix_plan`.

Sequences that share a prefix stand side by side once they are sorted. Their common prefixes form a tree (a
compressed trie, built in one pass over the sorted list with a stack): a node is a run of neighbours and the
length of the prefix that all of them share, and a leaf is one sequence. Two ways of sharing compete at each
node.

* A packed prompt computes the node's prefix and then its sequences' suffixes in one input. Its cost is its
  length L plus L * L / 3,000, since attention in it is dense (`tuning.ATTENTION_COST_SCALE`). A node with
  many sequences is cut into several packed prompts, which repeat the prefix. The best length of these follows
  from the costs: with a prefix of p tokens and attention scale A, cost per suffix token is least at p +
  sqrt(p * (A + p)).
* A shared prefix is computed in a pass of its own, and every packed prompt after it is shorter by its length.
  The pass costs its tokens, half of the attention (a causal mask halves it), and a fixed cost for a pass of
  batch 1.

The tree is built bottom up. Each node takes the cheaper of packed prompts that begin at it and what its
children chose (`packed_cost`), and then the cheapest of that, of its children each with shared prefixes of
their own, and of a shared prefix at this node (`best_cost`). A walk from the root then collects the choices.
Within a group that got a shared prefix, the tree is built again with that prefix taken off, since its packed
prompts are shorter now.

Time is linear in the number of sequences, apart from sorting: a node is visited once, and packing is tried
only for nodes of at most `tuning.MAX_SUFFIXES` sequences.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.inference import tuning

# First and last sequence, in sorted order, of one packed prompt.
Run = tuple[int, int]


class SortedSequences:
    """Sequences in sorted order, and how many tokens neighbours share.

    Attributes:
        token_ids: The sequences, sorted and distinct.
        first_read: For each, the first position that will be read: a shared prefix must end before it.
        max_shared_length: The most tokens of a shared prefix and a packed prompt of several suffixes
            together.
        prefix_pass_cost: What a pass for a shared prefix costs besides its tokens, in tokens.
        lengths: Length of each sequence.
        common: Length of the common prefix of sequences i and i + 1.
    """

    def __init__(
        self,
        token_ids: list[tuple[int, ...]],
        first_read: list[int],
        *,
        max_shared_length: float,
        prefix_pass_cost: float,
    ) -> None:
        self.token_ids, self.first_read = token_ids, first_read
        self.max_shared_length, self.prefix_pass_cost = max_shared_length, prefix_pass_cost
        self.lengths = [len(sequence) for sequence in token_ids]
        arrays = [np.asarray(sequence) for sequence in token_ids]
        self.common = [_common_length(a, b) for a, b in itertools.pairwise(arrays)]

    def prefix_length(self, first: int, last: int) -> int:
        """How many tokens sequences first..last share, so that each keeps at least one of its own."""
        shortest = min(self.lengths[first : last + 1]) - 1
        return min([*self.common[first:last], shortest])


@dataclass
class _Node:
    """Sequences first..last, which share `prefix_length` tokens, and the best ways to compute them.

    Attributes:
        prefix_length: Tokens that all of them share; for a leaf, its length.
        first: Its first sequence, in sorted order.
        last: Its last sequence.
        children: The nodes below; none for a leaf.
        max_prefix: How long a shared prefix may be: no token of it is read.
        packed_cost: Cost of the best packed prompts for these sequences.
        num_prompts: How many packed prompts these are.
        num_tokens: How long they are together.
        starts: The first sequence of each of them, where they begin at this node; None where the children's
            do.
        best_cost: Cost of the best packed prompts and shared prefixes.
    """

    prefix_length: int
    first: int
    last: int
    children: list[_Node] = field(default_factory=list)
    max_prefix: int = 0
    packed_cost: float = 0.0
    num_prompts: int = 0
    num_tokens: int = 0
    starts: list[int] | None = None
    best_cost: float = 0.0

    @property
    def cost_of_children(self) -> float:
        """The best cost of the children, each by itself."""
        return sum(child.best_cost for child in self.children) if self.children else self.packed_cost


def choose_groups(sequences: SortedSequences) -> Iterator[tuple[int, list[Run]]]:
    """Length of each shared prefix that pays, with the packed prompts after it; then, with 0, all others."""
    without_prefix: list[Run] = []
    nodes = [_build_tree(sequences, 0, len(sequences.token_ids) - 1, computed=0)]
    while nodes:
        node = nodes.pop()
        if node.best_cost < min(node.packed_cost, node.cost_of_children):
            after_prefix = _build_tree(sequences, node.first, node.last, computed=node.max_prefix)
            yield node.max_prefix, list(_packed_runs(after_prefix))
        elif node.packed_cost <= node.cost_of_children:
            without_prefix += _packed_runs(node)
        else:
            nodes += node.children
    if without_prefix:
        yield 0, without_prefix


def _build_tree(sequences: SortedSequences, first: int, last: int, computed: int) -> _Node:
    """Tree of the common prefixes of first..last, with costs after a shared prefix of `computed` tokens."""
    # The nodes whose right end is not known yet, from the root down: each shares more tokens than the one
    # before.
    unfinished: list[_Node] = []
    for i in range(first, last + 1):
        node = _Node(sequences.lengths[i], i, i)
        _choose_packing(sequences, node, computed)
        common = sequences.common[i] if i < last else -1
        while unfinished and unfinished[-1].prefix_length > common:
            unfinished[-1].children.append(node)
            unfinished[-1].last = i
            node = unfinished.pop()
            _choose_packing(sequences, node, computed)
        if unfinished and unfinished[-1].prefix_length == common:
            unfinished[-1].children.append(node)
        elif common >= 0:
            unfinished.append(_Node(common, node.first, i, [node]))
    return node


def _choose_packing(sequences: SortedSequences, node: _Node, computed: int) -> None:
    """Fill in a node's costs and choices; its children's are known."""
    if not node.children:
        length = sequences.lengths[node.first] - computed
        node.packed_cost, node.num_prompts, node.num_tokens = _prompt_cost(length), 1, length
        node.starts = [node.first]
        node.max_prefix = sequences.first_read[node.first]
        node.best_cost = node.packed_cost
        return
    node.packed_cost = sum(child.packed_cost for child in node.children)
    node.num_prompts = sum(child.num_prompts for child in node.children)
    node.num_tokens = sum(child.num_tokens for child in node.children)
    count = node.last - node.first + 1
    if node.prefix_length > computed and count <= tuning.MAX_SUFFIXES:
        starts, cost, tokens = _pack_sequences(sequences, node, computed)
        if cost < node.packed_cost:
            node.packed_cost, node.num_prompts, node.num_tokens = cost, len(starts), tokens
            node.starts = starts
    node.max_prefix = min(node.prefix_length, *(child.max_prefix for child in node.children))
    node.best_cost = min(node.packed_cost, node.cost_of_children, _cost_with_prefix(sequences, node))


def _cost_with_prefix(sequences: SortedSequences, node: _Node) -> float:
    """Cost of a node's packed prompts after a shared prefix, with the pass that computes it."""
    prefix = node.max_prefix
    # Every packed prompt is shorter by the prefix; so is the attention of its tokens, which they pay per
    # column.
    saved = prefix * (node.num_prompts + node.num_tokens / tuning.ATTENTION_COST_SCALE)
    # Attention within the prefix is causal, without a mask of ours: half of a packed prompt's.
    prefix_pass = prefix + prefix * prefix / (2 * tuning.ATTENTION_COST_SCALE) + sequences.prefix_pass_cost
    return prefix_pass + node.packed_cost - saved


def _pack_sequences(sequences: SortedSequences, node: _Node, computed: int) -> tuple[list[int], float, int]:
    """Packed prompts with this node's prefix, each filled up to the length at which a suffix costs least.

    Returns:
        First sequences, cost, and number of tokens of the packed prompts.
    """
    prefix_length = min(node.prefix_length, sequences.prefix_length(node.first, node.last))
    prefix = max(computed, prefix_length) - computed
    cheapest = prefix + (prefix * (tuning.ATTENTION_COST_SCALE + prefix)) ** 0.5
    max_length = min(cheapest, sequences.max_shared_length - computed)
    starts, cost, tokens, length = [node.first], 0.0, 0, prefix
    for i in range(node.first, node.last + 1):
        suffix = sequences.lengths[i] - computed - prefix
        if i > starts[-1] and length + suffix > max_length:
            cost, tokens = cost + _prompt_cost(length), tokens + length
            starts.append(i)
            length = prefix
        length += suffix
    return starts, cost + _prompt_cost(length), tokens + length


def _prompt_cost(length: int) -> float:
    return length + length * length / tuning.ATTENTION_COST_SCALE


def _packed_runs(root: _Node) -> Iterator[Run]:
    """The packed prompts that were chosen for a node's sequences."""
    nodes = [root]
    while nodes:
        node = nodes.pop()
        if node.starts is None:
            nodes += node.children
            continue
        ends = [*(start - 1 for start in node.starts[1:]), node.last]
        yield from zip(node.starts, ends, strict=True)


def _common_length(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """Length of the longest common prefix."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if different.size else length
