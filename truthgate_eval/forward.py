"""The batched forward pass of a plan (`prefix_tree`): what sequences share is computed once.

A row `[prefix, branch, branch, ...]` is one input with a 4D mask, under which a branch sees the prefix
and itself, and with position ids that start anew for each branch. A trunk's keys and values are computed
first and stand before every row. Models that this does not fit are found by trying (`TreeForward.check`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn

from truthgate_eval.key_store import KeyStore
from truthgate_eval.prefix_tree import Group, Row

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """Some rows as a model takes them.

    Attributes:
        tokens: Token ids, int64 [rows, length], padded to the right.
        positions: Position ids, int64 [rows, length]; None lets the model count them.
        mask: 0 where a token looks and -inf elsewhere, [rows, 1, length, trunk + length]; or, for
            rows of one branch and no trunk, the usual int64 [rows, length].
    """

    tokens: torch.Tensor
    positions: torch.Tensor | None
    mask: torch.Tensor


def make_batch(rows: Sequence[Row], *, trunk: int, dtype: torch.dtype, device: torch.device) -> Batch:
    """Tokens, positions and mask of some rows after a trunk of that many tokens."""
    length = max(map(len, rows))
    tokens = torch.zeros((len(rows), length), dtype=torch.long)
    segments = torch.full((len(rows), length), -1)  # padding sees the prefix and padding: never nothing
    positions = torch.zeros((len(rows), length), dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row.tokens)
        segments[i, : len(row)] = torch.tensor(row.segments)
        positions[i, : len(row)] = torch.tensor(row.positions)
    tokens, segments = tokens.to(device), segments.to(device)
    if trunk == 0 and all(len(row.branches) == 1 and not row.prefix for row in rows):
        return Batch(tokens, None, (segments >= 0).long())
    causal = torch.ones((length, length), dtype=torch.bool, device=device).tril()
    keys = segments[:, None, :]
    visible = causal & ((keys == 0) | (keys == segments[:, :, None]))
    # Float, not bool: eager attention adds the mask to its scores, and would add 0 and 1.
    mask = torch.zeros((len(rows), 1, length, trunk + length), dtype=dtype, device=device)
    mask[:, 0, :, trunk:].masked_fill_(~visible, -torch.inf)
    return Batch(tokens, positions.to(device) + trunk, mask)


class TokenBudget:
    """How many tokens go into one batch; halved for good when memory does not hold them."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    @classmethod
    def of(
        cls, batch_size: int | str, sequences: Sequence[Sequence[int]], device: torch.device
    ) -> TokenBudget:
        """What `batch_size` of the longest sequences have; `auto` starts with what keeps a device busy."""
        if isinstance(batch_size, int):
            return cls(batch_size * max(map(len, sequences), default=1))
        return cls(4096 if device.type == "cpu" else 16384)

    def take(self, rows: Sequence[Row]) -> int:
        """How many of these rows, longest first, make the next batch; at least one."""
        return max(1, min(len(rows), self.tokens // len(rows[0])))

    def run(self, rows: Sequence[Row], run: Callable[[list[Row]], None]) -> None:
        """Run all rows in batches; a batch that does not fit in memory is tried again in halves."""
        todo = sorted(rows, key=lambda row: -len(row))
        while todo:
            batch = todo[: self.take(todo)]
            try:
                run(batch)
            except RuntimeError as error:
                if not _out_of_memory(error) or (len(batch) == 1 and len(batch[0].branches) == 1):
                    raise
                torch.cuda.empty_cache()
                if len(batch) == 1:
                    todo = [*batch[0].split(), *todo[1:]]
                self.tokens = max(1, min(self.tokens, len(batch) * len(batch[0])) // 2)
                log.warning("out of memory: going on with batches of %d tokens", self.tokens)
                continue
            todo = todo[len(batch) :]


class TreeForward:
    """A model that can be run on rows.

    Attributes:
        shares: Whether the model can share prefixes; if not, only rows of one branch may be run.
        longest: The longest sequence, and the longest row, for which sharing is right.
    """

    def __init__(self, model: Any, decoder: nn.Module | None = None) -> None:
        """Try the model on a few tokens, and say in one log line if it cannot share prefixes."""
        self.model = model
        self.decoder: nn.Module = model.get_decoder() if decoder is None else decoder
        weights = next(self.decoder.parameters())
        self.dtype = getattr(model, "dtype", weights.dtype)
        # Weights that are offloaded show no device until they run.
        self.device = torch.device("cpu") if weights.device.type == "meta" else weights.device
        self.longest = _longest(model.config.get_text_config(decoder=True))
        reason = self.check()
        self.shares = reason is None
        if reason is not None:
            log.warning(
                "%s shares no prefixes, every sequence runs by itself: %s", type(model).__name__, reason
            )

    def batch(self, rows: Sequence[Row], trunk: KeyStore | None = None) -> Batch:
        """These rows as the model takes them, after `trunk`."""
        length = 0 if trunk is None else trunk.shared_length
        return make_batch(rows, trunk=length, dtype=self.dtype, device=self.device)

    def trunk(self, group: Group) -> KeyStore | None:
        """The keys and values of a group's trunk; None where it has none."""
        if not group.trunk:
            return None
        store = KeyStore(keep=True)
        tokens = torch.tensor([group.trunk], device=self.device)
        with torch.no_grad():
            self.decoder(input_ids=tokens, past_key_values=store, use_cache=True)
        store.share()
        return store

    def run(self, batch: Batch, store: KeyStore | None = None) -> None:
        """Run the decoder alone; what is wanted of it, the caller's hooks keep."""
        with torch.no_grad():
            self.decoder(**_inputs(batch, store))

    def logits(
        self, batch: Batch, rows: torch.Tensor, places: torch.Tensor, store: KeyStore | None = None
    ) -> torch.Tensor:
        """Logits at some tokens of a batch; the language-model head runs on those only.

        Args:
            batch: The rows.
            rows: int64 [n], the row of each token.
            places: int64 [n], its place in the row.
            store: What stands before the rows; a store that keeps takes up their keys and values.

        Returns:
            [n, vocabulary] in the model's dtype.
        """

        def pick(_module: nn.Module, _args: Any, output: Any) -> Any:
            hidden = output.last_hidden_state
            output.last_hidden_state = hidden[rows.to(hidden.device), places.to(hidden.device)][None]
            return output

        # The model's own forward, and not its head alone: some scale or cap the logits afterwards.
        hook = self.decoder.register_forward_hook(pick)
        try:
            with torch.no_grad():
                return self.model(**_inputs(batch, store)).logits[0]
        finally:
            hook.remove()

    def check(self) -> str | None:
        """Compare rows with the plain model; None if they agree, else what went wrong."""
        try:
            return _difference(self)
        except Exception as error:  # a model's own code may fail in any way on what it does not know
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _inputs(batch: Batch, store: KeyStore | None) -> dict[str, Any]:
    inputs: dict[str, Any] = {"input_ids": batch.tokens, "attention_mask": batch.mask}
    if batch.positions is not None:
        inputs["position_ids"] = batch.positions
    if store is not None:
        inputs["past_key_values"] = store
    return {**inputs, "use_cache": store is not None}


def _difference(forward: TreeForward) -> str | None:
    """How rows, rows behind a trunk, and a decoded token differ from the plain model; None if they agree."""
    row, sequences = _trial(forward.model)
    plain = torch.stack([_plain(forward, sequence) for sequence in sequences])
    half = len(row.prefix) // 2
    behind = Row(row.prefix[half:], row.branches, row.members)
    store = forward.trunk(Group(row.prefix[:half], ()))
    assert store is not None
    lasts = [[int(row.places(i)[-1]) for i in range(2)], [int(behind.places(i)[-1]) for i in range(2)]]
    rows = torch.zeros(2, dtype=torch.long)
    found = [
        forward.logits(forward.batch([row]), rows, torch.tensor(lasts[0])),
        forward.logits(forward.batch([behind], store), rows, torch.tensor(lasts[1]), store),
        *_decoded(forward, row, half),
    ]
    # The branches end in one token: how far they are apart is what the mask and positions must keep.
    apart = (plain[0] - plain[1]).abs().max()
    allowed = 0.1 * apart
    if forward.dtype == torch.float32:
        allowed = torch.minimum(allowed, 1e-4 * plain.abs().max())
    for kind, logits in zip(("rows", "a trunk", "decoding"), found, strict=True):
        error = (logits.float() - plain).abs().max()
        if not error <= allowed:
            return f"with {kind}, logits differ by {error:.1e} from the plain model's (allowed {allowed:.1e})"
    return None


def _decoded(forward: TreeForward, row: Row, half: int) -> Iterator[torch.Tensor]:
    """Logits after the branches' last token where it is decoded, and not part of the row."""
    shorter = Row(row.prefix[half:], tuple(branch[:-1] for branch in row.branches), row.members)
    trunk = forward.trunk(Group(row.prefix[:half], ()))
    assert trunk is not None
    store = trunk.behind()
    forward.run(forward.batch([shorter], store), store)
    places = [torch.from_numpy(shorter.places(i)) for i in range(2)]
    store.spread(torch.zeros(2, dtype=torch.long), places)
    tokens = torch.tensor([[branch[-1]] for branch in row.branches], device=forward.device)
    step = Batch(tokens, store.next_positions(forward.device), store.step_mask(forward.dtype, forward.device))
    yield forward.logits(step, torch.arange(2), torch.zeros(2, dtype=torch.long), store)


def _trial(model: Any) -> tuple[Row, list[list[int]]]:
    """A row of two branches of different length that end in one token; the two sequences."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    draw = torch.randint(min(3, vocabulary - 1), vocabulary, (72,), generator=generator).tolist()
    prefix, first, second = draw[:32], draw[32:56], draw[56:]
    second[-1] = first[-1]
    row = Row(tuple(prefix), (tuple(first), tuple(second)), (0, 1))
    return row, [prefix + first, prefix + second]


def _plain(forward: TreeForward, sequence: list[int]) -> torch.Tensor:
    with torch.no_grad():
        tokens = torch.tensor([sequence], device=forward.device)
        return forward.model(input_ids=tokens, use_cache=False).logits[0, -1].float()


def _longest(config: Any) -> float:
    """Beyond this length a token does not see all before it, or positions are turned differently."""
    limits = [
        getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")
    ]
    rope = getattr(config, "rope_parameters", None) or {}
    for kind in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if kind.get("rope_type") in ("dynamic", "longrope"):
            limits.append(kind.get("original_max_position_embeddings") or config.max_position_embeddings)
    return min((limit for limit in limits if isinstance(limit, int)), default=math.inf)


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
