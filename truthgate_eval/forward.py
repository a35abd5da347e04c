"""The batched forward pass of a plan (`prefix_tree`): what sequences share is computed once.

A row `[prefix, branch, branch, ...]` is one input with a 4D mask, under which a branch sees the prefix
and itself, and with position ids that start anew for each branch. A trunk's keys and values are computed
first and stand before every row. Models that this does not fit are found by trying (`TreeForward.check`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn

from truthgate_eval.key_store import KeyStore
from truthgate_eval.lanes import Batch, make_batch
from truthgate_eval.prefix_tree import Group, Row

log = logging.getLogger(__name__)


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

    def take(self, rows: Sequence[Row], extra: int = 0) -> int:
        """How many of these rows, longest first, make the next batch; at least one."""
        tokens = 0
        for count, row in enumerate(rows):
            tokens += len(row) + len(row.branches) * extra
            if tokens > self.tokens:
                return max(1, count)
        return len(rows)

    def run(self, rows: Sequence[Row], run: Callable[[list[Row]], None], *, extra: int = 0) -> None:
        """Run all rows in batches; a batch that does not fit in memory is tried again in halves.

        Args:
            rows: What to run.
            run: Runs some rows; an out-of-memory error out of it leaves nothing behind.
            extra: Tokens that each branch will have on top of its own.
        """
        todo = sorted(rows, key=lambda row: -len(row))
        while todo:
            batch = todo[: self.take(todo, extra)]
            try:
                run(batch)
            except RuntimeError as error:
                if not _out_of_memory(error) or (len(batch) == 1 and len(batch[0].branches) == 1):
                    raise
                torch.cuda.empty_cache()
                if len(batch) == 1:
                    todo = [*batch[0].split(), *todo[1:]]
                self.tokens = max(1, min(self.tokens, sum(map(len, batch))) // 2)
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
        self.shares = True
        reason = self.check()
        self.shares = reason is None
        if reason is not None:
            log.warning(
                "%s shares no prefixes, every sequence runs by itself: %s", type(model).__name__, reason
            )

    def batch(self, rows: Sequence[Row], trunk: KeyStore | None = None) -> Batch:
        """These rows as the model takes them, after `trunk`."""
        length = 0 if trunk is None else trunk.shared_length
        return make_batch(rows, trunk=length, dtype=self.dtype, device=self.device, pack=self.shares)

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
            rows: int64 [n], the lane of each token.
            places: int64 [n], its place in the lane.
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

    def step(self, store: KeyStore, tokens: Sequence[int]) -> torch.Tensor:
        """Logits after one more token of each sequence in the store, [n, vocabulary]."""
        inputs = torch.tensor(tokens, device=self.device)[:, None]
        positions, mask = store.next_token(self.dtype, self.device)
        rows = torch.arange(len(tokens))
        return self.logits(Batch(inputs, positions, mask), rows, torch.zeros_like(rows), store)

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
    trunk = forward.trunk(Group(row.prefix[:half], ()))
    behind = Row(row.prefix[half:], row.branches, row.members)
    # The branches end in one token: how far they are apart is what the mask and positions must keep.
    allowed = 0.1 * (plain[0] - plain[1]).abs().max()
    if forward.dtype == torch.float32:
        allowed = torch.minimum(allowed, 1e-4 * plain.abs().max())
    for kind, run in (
        ("rows", lambda: _last_logits(forward, row, None)),
        ("a trunk", lambda: _last_logits(forward, behind, trunk)),
        ("decoding", lambda: _decoded(forward, behind, trunk)),
    ):
        error = (run().float() - plain).abs().max()
        if not error <= allowed:
            return f"with {kind}, logits differ by {error:.1e} from the plain model's (allowed {allowed:.1e})"
    return None


def _last_logits(forward: TreeForward, row: Row, trunk: KeyStore | None) -> torch.Tensor:
    """Logits after each branch, in a lane that a short row shares."""
    rows = [row, Row((), (row.branches[0][:3],), (2,))]
    batch = forward.batch(rows, trunk)
    return forward.logits(batch, *batch.lasts(rows), trunk)[:2]


def _decoded(forward: TreeForward, row: Row, trunk: KeyStore | None) -> torch.Tensor:
    """Logits after the branches' last token where it is decoded, and not part of the row."""
    assert trunk is not None
    rows = [Row(row.prefix, tuple(branch[:-1] for branch in row.branches), row.members)]
    store = trunk.behind()
    batch = forward.batch(rows, trunk)
    forward.run(batch, store)
    store.spread(batch, rows)
    return forward.step(store, [branch[-1] for branch in row.branches])


def _trial(model: Any) -> tuple[Row, list[list[int]]]:
    """A row of two branches of different length that end in one token; the two sequences."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    draw = torch.randint(min(3, vocabulary - 1), vocabulary, (36,), generator=generator).tolist()
    prefix, first, second = draw[:16], draw[16:30], draw[30:]
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
