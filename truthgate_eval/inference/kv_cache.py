"""Key-value cache in which a prefix that many sequences share is held once.

`SharedPrefixCache` takes the place of transformers' cache. It holds the keys and values of the shared prefix
once, for all batch rows, and after them those of each row's own tokens. A row may hold several sequences
(packed prompts): masks say which of the row's columns each of them sees.

See `docs/performance.md#how-the-engine-works`, "Key-value cache".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache, DynamicLayer

from truthgate_eval.inference import tuning
from truthgate_eval.inference.packing import PackedBatch
from truthgate_eval.inference.prefix_plan import PackedPrompt

# Keys and values of one layer, [rows, heads, length, width] each.
LayerState = tuple[torch.Tensor, torch.Tensor]


class _CacheLayer(DynamicLayer):
    """Keys and values of one layer.

    Attributes:
        prefix: Those of the shared prefix, [1, heads, prefix, width]; None without one.
        own: Those of each row's own tokens, [rows, heads, capacity, width]; None while there are none.
        num_filled: How many columns of `own` are filled.
        writable: Whether the next pass leaves its keys and values in `own`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.prefix: LayerState | None = None
        self.own: LayerState | None = None
        self.num_filled = 0
        self.writable = False

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: object, **_kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All that the new tokens may attend to: the prefix, the rows' tokens so far, and themselves."""
        new = key_states, value_states
        if self.own is not None:
            new = self._append(*new)
        elif self.writable:
            self.own, self.num_filled = new, key_states.shape[2]
        if self.prefix is None:
            return new
        rows = len(key_states)
        keys, values = (
            torch.cat([prefix.expand(rows, -1, -1, -1), own], dim=2)
            for prefix, own in zip(self.prefix, new, strict=True)
        )
        return keys, values

    def _append(self, keys: torch.Tensor, values: torch.Tensor) -> LayerState:
        assert self.own is not None
        end = self.num_filled + keys.shape[2]
        if end > self.own[0].shape[2]:
            columns = max(tuning.CACHE_GROWTH, keys.shape[2], self.num_filled // 4)
            self.own = _grow(self.own[0], columns), _grow(self.own[1], columns)
        for own, new in zip(self.own, (keys, values), strict=True):
            own[:, :, self.num_filled : end] = new
        self.num_filled = end
        return self.own[0][:, :, :end], self.own[1][:, :, :end]

    def unpack(self, rows: torch.Tensor, columns: torch.Tensor) -> None:
        """Make row i of `own` the given columns of row `rows[i]`.

        Args:
            rows: int64 [sequences].
            columns: int64 [sequences, length].
        """
        assert self.own is not None
        device = self.own[0].device
        rows, columns = rows.to(device)[:, None], columns.to(device)
        self.own = (
            self.own[0][rows, :, columns].transpose(1, 2),
            self.own[1][rows, :, columns].transpose(1, 2),
        )
        self.num_filled = columns.shape[1]

    def select_rows(self, rows: torch.Tensor) -> None:
        """Keep these rows of `own`, int64 [rows]."""
        assert self.own is not None
        rows = rows.to(self.own[0].device)
        self.own = self.own[0][rows], self.own[1][rows]

    def get_seq_length(self) -> int:
        """Number of tokens before the next one, as transformers counts them."""
        return self.num_filled + (0 if self.prefix is None else self.prefix[0].shape[2])


def _grow(states: torch.Tensor, columns: int) -> torch.Tensor:
    """A copy of keys or values with so many free columns after them."""
    rows, heads, length, width = states.shape
    larger = states.new_empty((rows, heads, length + columns, width))
    larger[:, :, :length] = states
    # A mask gives these columns the weight 0, but 0 times an arbitrary number may be NaN.
    larger[:, :, length:] = 0
    return larger


class SharedPrefixCache(Cache):
    """Keys and values of every layer; transformers fills and reads it like its own caches.

    A pass over a shared prefix (`writable`, then `freeze_prefix`) makes a read-only cache that any number of
    batches attend to. `fork` gives a writable cache on the same prefix for a batch that is decoded:
    `assign_sequences` after its first pass, then `next_token_inputs` before every new token.

    Attributes:
        writable: Whether the next pass leaves its keys and values here.
        prefix: Token ids of the shared prefix.
        visible: The columns, after the prefix, that each sequence sees: bool [sequences, columns]; None
            before `assign_sequences`.
        rows: The batch row of each sequence, int64 [sequences].
        slots: The number of each sequence among those of its row, int64 [sequences].
        position_offsets: Next position less number of tokens of each sequence, int64 [sequences]: not 0 where
            an image takes fewer positions than tokens.
    """

    def __init__(self, prefix: Sequence[int] = (), *, writable: bool = False) -> None:
        self.cache_layers: list[_CacheLayer] = []
        super().__init__(layers=self.cache_layers)  # type: ignore[arg-type]  # the same list, which grows below
        self.writable = writable
        self.prefix = tuple(prefix)
        self.visible: torch.Tensor | None = None
        self.rows = self.slots = self.position_offsets = torch.zeros(0, dtype=torch.long)

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: object,
        **kwargs: object,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by transformers in every layer; see `_CacheLayer.update`."""
        while len(self.cache_layers) <= layer_idx:
            self.cache_layers.append(_CacheLayer())
        self.cache_layers[layer_idx].writable = self.writable
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    @property
    def prefix_length(self) -> int:
        """Number of the shared prefix's tokens that are cached."""
        states = self.cache_layers[0].prefix if self.cache_layers else None
        return 0 if states is None else states[0].shape[2]

    def freeze_prefix(self) -> None:
        """Make the single row that was written the shared prefix, and the cache read-only."""
        for layer in self.cache_layers:
            layer.prefix, layer.own, layer.num_filled = layer.own, None, 0
        self.writable = False

    def saved_layers(self, count: int) -> list[LayerState]:
        """What the last pass wrote in the lowest `count` layers. Later passes do not change these tensors."""
        return [layer.own for layer in self.cache_layers[:count] if layer.own is not None]

    def load_layers(self, states: Sequence[LayerState]) -> None:
        """Put back what `saved_layers` gave, as if the pass had computed it."""
        for layer, own in zip(self.cache_layers, states, strict=False):
            layer.own, layer.num_filled = own, own[0].shape[2]

    def fork(self) -> SharedPrefixCache:
        """A writable cache on the same prefix, whose keys and values are not copied."""
        cache = SharedPrefixCache(self.prefix, writable=True)
        for layer in self.cache_layers:
            cache.cache_layers.append(_CacheLayer())
            cache.cache_layers[-1].prefix = layer.prefix
        return cache

    def assign_sequences(self, batch: PackedBatch, prompts: Sequence[PackedPrompt]) -> None:
        """Prepare decoding: note in which row and columns each sequence of the last batch is.

        Args:
            batch: The batch that was run last.
            prompts: Its packed prompts. Their suffixes, prompt by prompt, are the sequences.
        """
        rows, columns = [], []
        for prompt, (row, offset) in zip(prompts, batch.offsets, strict=True):
            for suffix in range(len(prompt.suffixes)):
                rows.append(row)
                columns.append(torch.from_numpy(prompt.columns(suffix)) + offset)
        self.visible = torch.zeros((len(rows), batch.token_ids.shape[1]), dtype=torch.bool)
        for own, filled in zip(self.visible, columns, strict=True):
            own[filled] = True
        self.position_offsets = (
            torch.tensor(batch.position_offsets)
            if batch.position_offsets
            else torch.zeros(len(rows), dtype=torch.long)
        )
        self._assign_slots(torch.tensor(rows))
        self._unpack_if_cheaper()

    def _assign_slots(self, rows: torch.Tensor) -> None:
        """Number the sequences of each row, and drop rows without any."""
        used, self.rows = torch.unique(rows, return_inverse=True)
        if len(used) < self._num_rows:
            for layer in self.cache_layers:
                layer.select_rows(used)
        same = (self.rows[:, None] == self.rows[None]).tril(-1)
        self.slots = same.sum(dim=1)

    @property
    def _num_rows(self) -> int:
        own = self.cache_layers[0].own
        assert own is not None
        return len(own[0])

    def _unpack_if_cheaper(self) -> None:
        """Give every sequence a row of its own where that computes less and attends to less."""
        assert self.visible is not None
        sequences = len(self.slots)
        slots = self._num_rows * (1 + int(self.slots.max()))
        packed = self._num_rows * (self.prefix_length + self.visible.shape[1])
        unpacked = sequences * (self.prefix_length + int(self.visible.sum(dim=1).max()))
        if sequences < tuning.MIN_SLOT_OCCUPANCY * slots or unpacked < packed:
            self.unpack()

    def unpack(self) -> None:
        """Give every sequence a row of its own with the keys and values that it sees."""
        assert self.visible is not None
        columns = pad_sequence([own.nonzero()[:, 0] for own in self.visible], batch_first=True)
        for layer in self.cache_layers:
            layer.unpack(self.rows, columns)
        lengths = self.visible.sum(dim=1)
        self.visible = torch.arange(int(lengths.max())) < lengths[:, None]
        self.rows, self.slots = torch.arange(len(lengths)), torch.zeros_like(lengths)

    def next_token_inputs(
        self, dtype: torch.dtype, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Position ids and mask for one more token of each sequence, which counts as visible from now on.

        Sequence i's token goes to slot `slots[i]` of row `rows[i]`.

        Returns:
            Position ids, int64 [rows, slots]; and the mask, [rows, 1, slots, prefix + columns + slots], 0
            where a token attends and -inf elsewhere.
        """
        assert self.visible is not None
        rows, slots = self._num_rows, 1 + int(self.slots.max())
        positions = torch.zeros((rows, slots), dtype=torch.long)
        positions[self.rows, self.slots] = (
            self.prefix_length + self.visible.sum(dim=1) + self.position_offsets
        )
        itself = torch.eye(slots, dtype=torch.bool)
        self.visible = torch.cat([self.visible, itself[self.slots]], dim=1)
        # Empty slots attend to themselves: softmax over no column at all is NaN, which no later mask removes.
        sees = pad(itself, (self.visible.shape[1] - slots, 0)).repeat(rows, 1, 1)
        sees[self.rows, self.slots] = self.visible
        mask = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, -torch.inf)
        mask = pad(mask, (self.prefix_length, 0))
        return positions.to(device), mask[:, None].to(device)

    def select_sequences(self, sequences: torch.Tensor) -> None:
        """Keep these sequences only, int64 [n]."""
        assert self.visible is not None
        self.visible = self.visible[sequences]
        self.position_offsets = self.position_offsets[sequences]
        self._assign_slots(self.rows[sequences])
        self._unpack_if_cheaper()
