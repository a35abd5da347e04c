"""Keys and values of attention, kept so that what sequences share is held once.

A `SharedPrefixCache` takes the place of transformers' cache: the trunk's keys and values stand once, however
many rows look at them; each row's own stand behind, with holes that a mask leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.cache_utils import Cache, DynamicLayer

from truthgate_eval.inference.packing import PackedBatch
from truthgate_eval.inference.prefix_plan import PackedPrompt

LayerState = tuple[torch.Tensor, torch.Tensor]  # keys and values, [lanes, heads, length, width] each

# Own keys and values get room for this many decoded tokens at a time.
_GROWTH = 32
# Sequences go on together in the lanes that hold them as long as so many of a lane's slots are taken.
_MIN_SLOT_OCCUPANCY = 0.75


class _CacheLayer(DynamicLayer):
    """One layer: `shared` [1, heads, trunk, width], `own` [lanes, heads, length, width], each with values."""

    def __init__(self) -> None:
        super().__init__()
        self.shared: tuple[torch.Tensor, torch.Tensor] | None = None
        self.own: tuple[torch.Tensor, torch.Tensor] | None = None
        self.used = 0
        self.keep = False

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: object, **_kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values that these tokens may look at: shared, own so far, and theirs."""
        new = key_states, value_states
        if self.own is not None:
            new = self._append(*new)
        elif self.keep:
            self.own, self.used = new, key_states.shape[2]
        if self.shared is None:
            return new
        rows = len(key_states)
        keys, values = (
            torch.cat([shared.expand(rows, -1, -1, -1), own], dim=2)
            for shared, own in zip(self.shared, new, strict=True)
        )
        return keys, values

    def _append(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.own is not None
        end = self.used + keys.shape[2]
        if end > self.own[0].shape[2]:
            room = max(_GROWTH, keys.shape[2], self.used // 4)
            self.own = _with_room(self.own[0], room), _with_room(self.own[1], room)
        for own, new in zip(self.own, (keys, values), strict=True):
            own[:, :, self.used : end] = new
        self.used = end
        return self.own[0][:, :, :end], self.own[1][:, :, :end]

    def unpack(self, rows: torch.Tensor, places: torch.Tensor) -> None:
        """Own keys and values of sequence i become those at `places[i]` of lane `rows[i]`."""
        assert self.own is not None
        device = self.own[0].device
        rows, places = rows.to(device)[:, None], places.to(device)
        self.own = (
            self.own[0][rows, :, places].transpose(1, 2),
            self.own[1][rows, :, places].transpose(1, 2),
        )
        self.used = places.shape[1]

    def select_rows(self, rows: torch.Tensor) -> None:
        """Keep these rows' own keys and values."""
        assert self.own is not None
        rows = rows.to(self.own[0].device)
        self.own = self.own[0][rows], self.own[1][rows]

    def get_seq_length(self) -> int:
        """Tokens before the next one, as transformers counts them."""
        return self.used + (0 if self.shared is None else self.shared[0].shape[2])


def _with_room(states: torch.Tensor, room: int) -> torch.Tensor:
    rows, heads, length, width = states.shape
    larger = states.new_empty((rows, heads, length + room, width))
    larger[:, :, :length] = states
    # A mask leaves the holes out, but only finite numbers times 0 are 0.
    larger[:, :, length:] = 0
    return larger


class SharedPrefixCache(Cache):
    """The keys and values of every layer; transformers fills and reads it like any cache.

    Attributes:
        keep: Whether the next pass leaves its keys and values here as each row's own.
        trunk: The tokens whose keys and values are shared, or will be.
        lanes: The lane of each sequence that goes on, int64 [sequences]: see `assign_sequences`.
        slots: Its place among those of its lane.
        shifts: How far its next position is from the number of its tokens.
    """

    def __init__(self, prefix: Sequence[int] = (), *, keep: bool = False) -> None:
        self.cache_layers: list[_CacheLayer] = []
        super().__init__(layers=self.cache_layers)  # type: ignore[arg-type]  # the same list, which grows below
        self.keep = keep
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
        """As in `Cache`."""
        while len(self.cache_layers) <= layer_idx:
            self.cache_layers.append(_CacheLayer())
        self.cache_layers[layer_idx].keep = self.keep
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    @property
    def prefix_length(self) -> int:
        """Tokens of the trunk."""
        shared = self.cache_layers[0].shared if self.cache_layers else None
        return 0 if shared is None else shared[0].shape[2]

    def freeze_prefix(self) -> None:
        """Make the one row that was kept the trunk of all that follow."""
        for layer in self.cache_layers:
            layer.shared, layer.own, layer.used = layer.own, None, 0
        self.keep = False

    def saved_layers(self, layers: int) -> list[LayerState]:
        """What the last pass left of the lowest layers' keys and values, which nothing changes in place."""
        return [layer.own for layer in self.cache_layers[:layers] if layer.own is not None]

    def load_layers(self, held: Sequence[LayerState]) -> None:
        """Take these for the lowest layers', as if the pass had computed them."""
        for layer, own in zip(self.cache_layers, held, strict=False):
            layer.own, layer.used = own, own[0].shape[2]

    def fork(self) -> SharedPrefixCache:
        """A store on the same trunk that keeps what the next pass computes."""
        store = SharedPrefixCache(self.prefix, keep=True)
        for layer in self.cache_layers:
            store.cache_layers.append(_CacheLayer())
            store.cache_layers[-1].shared = layer.shared
        return store

    def assign_sequences(self, batch: PackedBatch, rows: Sequence[PackedPrompt]) -> None:
        """Let every sequence go on from its own tokens, in the lane that holds them.

        Args:
            batch: The batch that was run last.
            rows: Its rows.
        """
        lanes, places = [], []
        for row, (lane, start) in zip(rows, batch.offsets, strict=True):
            for branch in range(len(row.suffixes)):
                lanes.append(lane)
                places.append(torch.from_numpy(row.columns(branch)) + start)
        self.visible = torch.zeros((len(lanes), batch.token_ids.shape[1]), dtype=torch.bool)
        for own, place in zip(self.visible, places, strict=True):
            own[place] = True
        self.position_offsets = (
            torch.tensor(batch.position_offsets)
            if batch.position_offsets
            else torch.zeros(len(lanes), dtype=torch.long)
        )
        self._assign_slots(torch.tensor(lanes))
        self._unpack_if_cheaper()

    def _assign_slots(self, lanes: torch.Tensor) -> None:
        """Number the sequences of each lane, and leave out lanes without any."""
        used, self.rows = torch.unique(lanes, return_inverse=True)
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
        """Give every sequence a lane of its own, where that is less to compute and to look at."""
        assert self.visible is not None
        seats = self._num_rows * (1 + int(self.slots.max()))
        length = self.prefix_length + self.visible.shape[1]
        apart = len(self.slots) * (self.prefix_length + int(self.visible.sum(dim=1).max()))
        if len(self.slots) < _MIN_SLOT_OCCUPANCY * seats or apart < self._num_rows * length:
            self.unpack()

    def unpack(self) -> None:
        """Give every sequence a lane of its own with the keys and values that it sees."""
        assert self.visible is not None
        places = [own.nonzero()[:, 0] for own in self.visible]
        for layer in self.cache_layers:
            layer.unpack(self.rows, torch.nn.utils.rnn.pad_sequence(places, batch_first=True))
        lengths = self.visible.sum(dim=1)
        self.visible = torch.arange(int(lengths.max())) < lengths[:, None]
        self.rows, self.slots = torch.arange(len(lengths)), torch.zeros_like(lengths)

    def next_token_inputs(
        self, dtype: torch.dtype, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Position ids and mask of one more token of each sequence, which is counted from now on.

        Returns:
            int64 [lanes, slots] and [lanes, 1, slots, trunk + own + slots], 0 where it looks and -inf
            elsewhere; sequence i stands in slot `slots[i]` of lane `lanes[i]`.
        """
        assert self.visible is not None
        held, slots = self._num_rows, 1 + int(self.slots.max())
        positions = torch.zeros((held, slots), dtype=torch.long)
        positions[self.rows, self.slots] = (
            self.prefix_length + self.visible.sum(dim=1) + self.position_offsets
        )
        itself = torch.eye(slots, dtype=torch.bool)
        self.visible = torch.cat([self.visible, itself[self.slots]], dim=1)
        # An empty slot sees itself: it may not become NaN, which no mask takes back.
        sees = torch.nn.functional.pad(itself, (self.visible.shape[1] - slots, 0)).repeat(held, 1, 1)
        sees[self.rows, self.slots] = self.visible
        mask = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, -torch.inf)
        mask = torch.nn.functional.pad(mask, (self.prefix_length, 0))
        return positions.to(device), mask[:, None].to(device)

    def select_sequences(self, rows: torch.Tensor) -> None:
        """Go on with these sequences only."""
        assert self.visible is not None
        self.visible, self.position_offsets = self.visible[rows], self.position_offsets[rows]
        self._assign_slots(self.rows[rows])
        self._unpack_if_cheaper()
