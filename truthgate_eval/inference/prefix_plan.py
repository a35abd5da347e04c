"""Plans how to compute many token sequences so that what they have in common is computed once.

Equal sequences are computed once. Sequences with a common prefix share it in one of two ways: as suffixes of
one packed prompt, computed in one input, or after a shared prefix, whose keys and values a pass of its own
computes. `prefix_tree` decides which. Neither tensors nor a model are needed here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.inference import tuning
from truthgate_eval.inference.prefix_tree import SortedSequences, choose_groups


@dataclass(frozen=True)
class PackedPrompt:
    """`[prefix, suffix, suffix, ...]` in one input: every suffix attends to the prefix and to itself.

    Attributes:
        prefix: Token ids that all suffixes have before them, after the shared prefix of their group.
        suffixes: What each sequence has after that; at least one token each.
        sequence_ids: The number of each suffix's distinct sequence, see `PrefixPlan.distinct_ids`.

    Example:
        >>> prompt = PackedPrompt((5, 6), ((7, 8), (9,)), (0, 1))
        >>> prompt.token_ids, prompt.segment_ids, prompt.position_ids
        ([5, 6, 7, 8, 9], [0, 0, 1, 1, 2], [0, 1, 2, 3, 2])
        >>> prompt.columns(1).tolist()
        [0, 1, 4]
    """

    prefix: tuple[int, ...]
    suffixes: tuple[tuple[int, ...], ...]
    sequence_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prefix) + sum(map(len, self.suffixes))

    @property
    def token_ids(self) -> list[int]:
        """All token ids, one after another."""
        return [*self.prefix, *(token for suffix in self.suffixes for token in suffix)]

    @property
    def segment_ids(self) -> list[int]:
        """0 for tokens of the prefix, n for those of suffix n: a token attends to 0 and its own segment."""
        return [0] * len(self.prefix) + [n for n, suffix in enumerate(self.suffixes, 1) for _ in suffix]

    @property
    def position_ids(self) -> list[int]:
        """Each token's position after the shared prefix; every suffix goes on after the prompt's prefix."""
        start = len(self.prefix)
        return [*range(start), *(start + i for suffix in self.suffixes for i in range(len(suffix)))]

    def columns(self, suffix: int) -> NDArray[np.int64]:
        """Columns of the tokens of one sequence: those of the prefix and those of this suffix."""
        before = len(self.prefix) + sum(map(len, self.suffixes[:suffix]))
        own = np.arange(before, before + len(self.suffixes[suffix]))
        return np.concatenate([np.arange(len(self.prefix)), own])

    def split(self) -> tuple[PackedPrompt, PackedPrompt]:
        """Two packed prompts with half of the suffixes each, for when memory does not hold the whole."""
        half = len(self.suffixes) // 2
        return (
            PackedPrompt(self.prefix, self.suffixes[:half], self.sequence_ids[:half]),
            PackedPrompt(self.prefix, self.suffixes[half:], self.sequence_ids[half:]),
        )


@dataclass(frozen=True)
class PrefixGroup:
    """Packed prompts after one shared prefix; an empty prefix needs no pass of its own."""

    prefix: tuple[int, ...]
    prompts: tuple[PackedPrompt, ...]


@dataclass(frozen=True)
class PrefixPlan:
    """How to compute some sequences.

    Attributes:
        groups: What to run.
        distinct_ids: For each sequence of the input, the number of its distinct sequence.
        num_distinct: How many distinct sequences there are.
    """

    groups: tuple[PrefixGroup, ...]
    distinct_ids: tuple[int, ...]
    num_distinct: int

    @property
    def num_tokens(self) -> int:
        """Number of tokens that go through the model."""
        return sum(len(group.prefix) + sum(map(len, group.prompts)) for group in self.groups)

    def indices_by_distinct(self) -> list[list[int]]:
        """For each distinct sequence, the indices in the input where it occurs."""
        indices: list[list[int]] = [[] for _ in range(self.num_distinct)]
        for index, distinct in enumerate(self.distinct_ids):
            indices[distinct].append(index)
        return indices


def plan_prefixes(
    sequences: Sequence[Sequence[int]],
    *,
    first_read_positions: Sequence[int] | None = None,
    share: bool = True,
    max_shared_length: float = math.inf,
    prefix_pass_cost: float = tuning.PREFIX_PASS_COST,
) -> PrefixPlan:
    """Plan the cheapest way to compute every sequence.

    Takes the time of sorting the sequences, and is linear in their number otherwise.

    Args:
        sequences: Token ids, each sequence at least one token.
        first_read_positions: For each sequence, the first position at which logits or activations will be
            read; by default its last token. Shared prefixes end before it.
        share: Whether prefixes may be shared; if not, every distinct sequence is a packed prompt of its own.
        max_shared_length: The most tokens that a shared prefix and a packed prompt of several suffixes may
            have together.
        prefix_pass_cost: What a pass of its own costs, in tokens, however short the prefix.

    Raises:
        ValueError: A sequence is empty.

    Example:
        >>> plan = plan_prefixes([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7], [1, 2, 3, 4, 5, 6]])
        >>> plan.groups[0].prompts
        (PackedPrompt(prefix=(1, 2, 3, 4, 5), suffixes=((6,), (7,)), sequence_ids=(0, 1)),)
        >>> plan.distinct_ids, plan.num_tokens
        ((0, 1, 0), 7)
    """
    distinct_ids, distinct, first_read = _find_distinct(sequences, first_read_positions)
    order = sorted(range(len(distinct)), key=distinct.__getitem__)
    if not share or len(order) < 2:
        prompts = tuple(PackedPrompt((), (distinct[i],), (i,)) for i in order)
        alone = (PrefixGroup((), prompts),) if prompts else ()
        return PrefixPlan(alone, tuple(distinct_ids), len(distinct))
    ordered = SortedSequences(
        [distinct[i] for i in order],
        [first_read[i] for i in order],
        max_shared_length=max_shared_length,
        prefix_pass_cost=prefix_pass_cost,
    )
    groups = tuple(
        PrefixGroup(
            ordered.token_ids[runs[0][0]][:length],
            tuple(_pack(ordered, order, first, last, length) for first, last in runs),
        )
        for length, runs in choose_groups(ordered)
    )
    return PrefixPlan(groups, tuple(distinct_ids), len(distinct))


def _find_distinct(
    sequences: Sequence[Sequence[int]], first_read_positions: Sequence[int] | None
) -> tuple[list[int], list[tuple[int, ...]], list[int]]:
    """Distinct id of each sequence; the distinct sequences; the first position read of each of these."""
    numbers: dict[tuple[int, ...], int] = {}
    first_read: list[int] = []
    distinct_ids = []
    for i, sequence in enumerate(sequences):
        token_ids = tuple(sequence)
        if not token_ids:
            raise ValueError(f"sequence {i} is empty")
        first = len(token_ids) - 1 if first_read_positions is None else first_read_positions[i]
        number = numbers.setdefault(token_ids, len(numbers))
        if number == len(first_read):
            first_read.append(first)
        first_read[number] = min(first_read[number], first)
        distinct_ids.append(number)
    return distinct_ids, list(numbers), first_read


def _pack(
    ordered: SortedSequences, sequence_ids: list[int], first: int, last: int, computed: int
) -> PackedPrompt:
    """Packed prompt of sequences first..last after a shared prefix of `computed` tokens."""
    # A single sequence shares nothing: all of it is its suffix.
    end = computed if first == last else max(computed, ordered.prefix_length(first, last))
    return PackedPrompt(
        ordered.token_ids[first][computed:end],
        tuple(token_ids[end:] for token_ids in ordered.token_ids[first : last + 1]),
        tuple(sequence_ids[first : last + 1]),
    )
