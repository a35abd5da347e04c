"""The batched forward pass of a plan (`prefix_tree`): what sequences share is computed once.

A row `[prefix, branch, branch, ...]` is one input with a 4D mask, under which a branch sees the prefix
and itself, and with position ids that start anew for each branch. A trunk's keys and values are computed
first and stand before every row. Models that this does not fit are found by trying (`SharedPrefixModel.check`).
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn

from truthgate_eval.errors import GateError
from truthgate_eval.inference.kv_cache import SharedPrefixCache
from truthgate_eval.inference.packing import PackedBatch, PositionIds, make_batch
from truthgate_eval.inference.prefix_plan import PackedPrompt, PrefixGroup
from truthgate_eval.inference.self_check import (
    ReferenceLogits,
    find_mismatch,
    logits_and_rounding,
    make_test_prompts,
    reference_logits,
    run_safely,
)

if TYPE_CHECKING:
    from truthgate_eval.inference.lower_layer_cache import LowerLayerCache

log = logging.getLogger(__name__)

ENGINES = ("auto", "off")


def check_engine(engine: Any) -> str:
    """`auto`, or `off` for a host's own path throughout.

    Raises:
        GateError: It is neither.
    """
    if engine not in ENGINES:
        raise GateError(f"unknown engine {engine!r}: expected {' or '.join(ENGINES)}")
    return str(engine)


class TokenBudget:
    """How many tokens go into one batch; halved for good when memory does not hold them."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    @classmethod
    def for_batch_size(
        cls, batch_size: int | str, sequences: Sequence[Sequence[int]], device: torch.device
    ) -> TokenBudget:
        """What `batch_size` of the longest sequences have; `auto` starts with what keeps a device busy."""
        if isinstance(batch_size, int):
            return cls(batch_size * max(map(len, sequences), default=1))
        return cls(4096 if device.type == "cpu" else 16384)

    def next_batch_size(self, rows: Sequence[PackedPrompt], extra: int = 0) -> int:
        """How many of these rows, longest first, make the next batch; at least one."""
        tokens = 0
        for count, row in enumerate(rows):
            tokens += len(row) + len(row.suffixes) * extra
            if tokens > self.tokens:
                return max(1, count)
        return len(rows)

    def run_batches(
        self, rows: Sequence[PackedPrompt], run: Callable[[list[PackedPrompt]], None], *, extra: int = 0
    ) -> None:
        """Run all rows in batches; a batch that does not fit in memory is tried again in halves.

        Args:
            rows: What to run.
            run: Runs some rows; an out-of-memory error out of it leaves nothing behind.
            extra: Tokens that each branch will have on top of its own.
        """
        todo = sorted(rows, key=lambda row: -len(row))
        while todo:
            batch = todo[: self.next_batch_size(todo, extra)]
            try:
                run(batch)
            except RuntimeError as error:
                if not out_of_memory(error) or (len(batch) == 1 and len(batch[0].suffixes) == 1):
                    raise
                torch.cuda.empty_cache()
                if len(batch) == 1:
                    todo = [*batch[0].split(), *todo[1:]]
                self.tokens = max(1, min(self.tokens, sum(map(len, batch))) // 2)
                log.warning("out of memory: going on with batches of %d tokens", self.tokens)
                continue
            todo = todo[len(batch) :]


class SharedPrefixModel:
    """A model that can be run on rows.

    Attributes:
        shares: Whether the model can share prefixes; if not, only rows of one branch may be run.
        longest: The longest sequence, and the longest row, for which sharing is right.
        prefix_pass_cost: What a pass of its own costs, in tokens: see `plan`.
        positions: Where a sequence's tokens stand, for models that do not just count them; or None.
        below: Lower layers that run once for each batch, whatever gate is on those above; or None.
    """

    position_ids: PositionIds | None = None
    lower_layers: LowerLayerCache | None = None

    def __init__(self, model: Any, decoder: nn.Module | None = None) -> None:
        """Try the model on a few tokens, and say in one log line if it cannot share prefixes."""
        self.model = model
        self.decoder: nn.Module = model.get_decoder() if decoder is None else decoder
        self._cache = _cache_argument(self.decoder)
        weights = next(self.decoder.parameters())
        self.dtype = getattr(model, "dtype", weights.dtype)
        # Weights that are offloaded show no device until they run.
        self.device = torch.device("cpu") if weights.device.type == "meta" else weights.device
        # An accelerator is idle while a short trunk runs; a CPU works as well on few tokens as on many.
        self.prefix_pass_cost = 32.0 if self.device.type == "cpu" else 256.0
        self.max_shared_length = _max_shared_length(model.config.get_text_config(decoder=True))
        self.supports_sharing = True
        reason = self.check()
        self.supports_sharing = reason is None
        if reason is not None:
            log.warning(
                "%s shares no prefixes, every sequence runs by itself: %s", type(model).__name__, reason
            )

    def pack(self, prompts: Sequence[PackedPrompt], prefix: SharedPrefixCache | None = None) -> PackedBatch:
        """These rows as the model takes them, after `trunk`."""
        return make_batch(
            prompts, prefix=() if prefix is None else prefix.prefix, dtype=self.dtype, device=self.device,
            pack=self.supports_sharing, position_ids=self.position_ids,
        )  # fmt: skip

    def embed(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """Token ids [lanes, length] as the model's argument for them."""
        return {"input_ids": tokens}

    def compute_prefix(self, group: PrefixGroup) -> SharedPrefixCache | None:
        """The keys and values of a group's trunk; None where it has none."""
        if not group.prefix:
            return None
        store = SharedPrefixCache(group.prefix, keep=True)
        inputs = self.embed(torch.tensor([group.prefix], device=self.device))
        if self.position_ids is not None:
            places = self.position_ids(group.prefix)[:, None, :-1]
            inputs["position_ids"] = torch.from_numpy(places).to(self.device)
        with torch.no_grad(), self._reuse(("trunk", group.prefix), store):
            self.decoder(**inputs, **{self._cache: store}, use_cache=True)
        store.freeze_prefix()
        return store

    def run(self, batch: PackedBatch, cache: SharedPrefixCache | None = None) -> None:
        """Run the decoder alone; what is wanted of it, the caller's hooks keep."""
        with torch.no_grad(), self._reuse(batch.cache_key, cache):
            self.decoder(**self._inputs(batch, cache))

    def logits(
        self,
        batch: PackedBatch,
        rows: torch.Tensor,
        columns: torch.Tensor,
        cache: SharedPrefixCache | None = None,
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
            output.last_hidden_state = hidden[rows.to(hidden.device), columns.to(hidden.device)][None]
            return output

        # The model's own forward, and not its head alone: some scale or cap the logits afterwards.
        hook = self.decoder.register_forward_hook(pick)
        try:
            with torch.no_grad(), self._reuse(batch.cache_key, cache):
                return self.model(**self._inputs(batch, cache)).logits[0]
        finally:
            hook.remove()

    def decode_step(self, cache: SharedPrefixCache, tokens: Sequence[int]) -> torch.Tensor:
        """Logits after one more token of each sequence in the store, [n, vocabulary]."""
        positions, mask = cache.next_token_inputs(self.dtype, self.device)
        inputs = torch.zeros(positions.shape, dtype=torch.long)
        inputs[cache.rows, cache.slots] = torch.tensor(tokens)
        if self.position_ids is not None:  # what is decoded is text, which stands alike on all axes
            positions = positions.expand(len(self.position_ids([])), -1, -1)
        batch = PackedBatch(inputs.to(self.device), positions, mask)
        return self.logits(batch, cache.rows, cache.slots, cache)

    def check(self) -> str | None:
        """Compare rows with the plain model; None if they agree, else what went wrong."""
        return run_safely(lambda: find_mismatch(self))

    def make_reference(self) -> ReferenceLogits:
        """What shared prefixes are tried on."""
        row, sequences = make_test_prompts(self.model)
        longer = [*sequences[0], *sequences[1]]
        found = logits_and_rounding(lambda some: reference_logits(self, some), sequences, longer, self.dtype)
        return ReferenceLogits(row, *found)

    def input_key(self) -> tuple[Hashable, ...]:
        """What token ids mean beyond the vocabulary."""
        return ()

    def _reuse(self, key: Hashable, store: SharedPrefixCache | None) -> AbstractContextManager[None]:
        """A pass about `key`; None for one that comes only once."""
        if self.lower_layers is None or key is None:
            return nullcontext()
        return self.lower_layers.reuse((key, self.input_key()), store)

    def _inputs(self, batch: PackedBatch, store: SharedPrefixCache | None) -> dict[str, Any]:
        inputs: dict[str, Any] = {**self.embed(batch.token_ids), "attention_mask": batch.mask}
        if batch.position_ids is not None:
            inputs["position_ids"] = batch.position_ids
        if store is not None:
            inputs[self._cache] = store
        return {**inputs, "use_cache": store is not None}


def _cache_argument(decoder: nn.Module) -> str:
    """What the decoder calls its keys and values: transformers renames the argument class by class."""
    return "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"


def _max_shared_length(config: Any) -> float:
    """Beyond this length a token does not see all before it, or positions are turned differently."""
    limits = [
        getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")
    ]
    rope = getattr(config, "rope_parameters", None) or {}
    for kind in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if kind.get("rope_type") in ("dynamic", "longrope"):
            limits.append(kind.get("original_max_position_embeddings") or config.max_position_embeddings)
    return min((limit for limit in limits if isinstance(limit, int)), default=math.inf)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether memory, and not a mistake, ended a pass."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
