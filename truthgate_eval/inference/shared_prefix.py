"""A model that computes shared prefixes once: packed prompts in, logits or hooked activations out.

Use `self_check.load`, which also finds out whether a model can do this. What the engine does, step by step,
is in `docs/performance.md#how-the-engine-works`.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from truthgate_eval.decoder import find_decoder
from truthgate_eval.devices import weights_device
from truthgate_eval.inference import tuning
from truthgate_eval.inference.adapters import last_logits_only
from truthgate_eval.inference.kv_cache import SharedPrefixCache
from truthgate_eval.inference.lower_layer_cache import LowerLayerCache
from truthgate_eval.inference.packing import PackedBatch, PositionIds, make_batch
from truthgate_eval.inference.prefix_plan import PackedPrompt, PrefixGroup
from truthgate_eval.inference.reference import ReferenceLogits, text_reference


class SharedPrefixModel:
    """A causal language model that runs packed prompts after shared prefixes.

    A packed prompt is one input with a 4D mask, under which a suffix attends to the prefix and to itself, and
    with position ids that go on after the prefix for every suffix. A shared prefix is computed in a pass of
    its own, and its keys and values stand before every row of the batches after it.

    Attributes:
        model: The transformers model.
        decoder: Its text decoder, without the language-model head.
        dtype: What the model computes in.
        device: Where its inputs go.
        supports_sharing: Whether the model is right with shared prefixes and packed prompts. True until
            `self_check` has found otherwise; if False, only prompts of one suffix may be run.
        max_shared_length: The longest sequence, and packed prompt, for which sharing is right: a sliding
            window, or the length at which the model changes its rotary positions.
        prefix_pass_cost: What a pass of its own costs, in tokens: see `prefix_plan.plan_prefixes`.
        lower_layers: Outputs of the layers below the first gated one, see `self_check.cache_lower_layers`; or
            None.
        gradients: Whether `run` and `logits` keep what a backward pass needs.
    """

    lower_layers: LowerLayerCache | None = None
    gradients: bool = False

    def __init__(self, model: Any, decoder: nn.Module | None = None) -> None:
        """Wrap a model without running it.

        Args:
            model: A transformers model, also one with an adapter.
            decoder: Its text decoder, if it is known already.
        """
        self.model = model
        self.decoder: nn.Module = find_decoder(model) if decoder is None else decoder
        self.dtype: torch.dtype = getattr(model, "dtype", next(self.decoder.parameters()).dtype)
        self.device = weights_device(self.decoder)
        self.prefix_pass_cost = tuning.prefix_pass_cost(self.device)
        self.max_shared_length = _max_shared_length(model.config.get_text_config(decoder=True))
        self.supports_sharing = True
        self._cache_argument = _cache_argument(self.decoder)

    @property
    def position_ids(self) -> PositionIds | None:
        """Position ids of a sequence, for models that do not number tokens one by one; else None."""
        return None

    def pack(self, prompts: Sequence[PackedPrompt], prefix: SharedPrefixCache | None = None) -> PackedBatch:
        """These packed prompts as the model's input, after `prefix`."""
        return make_batch(
            prompts,
            prefix=() if prefix is None else prefix.prefix,
            dtype=self.dtype,
            device=self.device,
            pack=self.supports_sharing,
            position_ids=self.position_ids,
        )

    def embed(self, token_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """The decoder's keyword argument for token ids, int64 [rows, length]."""
        return {"input_ids": token_ids}

    def compute_prefix(self, group: PrefixGroup) -> SharedPrefixCache | None:
        """Keys and values of a group's shared prefix; None where it has none."""
        if not group.prefix:
            return None
        cache = SharedPrefixCache(group.prefix, writable=True)
        token_ids = torch.tensor([group.prefix], device=self.device)
        inputs = self.embed(token_ids)
        if self.position_ids is not None:
            positions = self.position_ids(group.prefix)[:, None, :-1]
            inputs["position_ids"] = torch.from_numpy(positions).to(self.device)
        reuse = self._reuse_lower_layers(("prefix", group.prefix), cache)
        with self._pass(token_ids), torch.no_grad(), reuse:
            self.decoder(**inputs, **{self._cache_argument: cache}, use_cache=True)
        cache.freeze_prefix()
        return cache

    def run(self, batch: PackedBatch, cache: SharedPrefixCache | None = None) -> None:
        """Run a batch for the caller's hooks, which keep what they need.

        Without sharing, the whole model runs: what it adds to the decoder may be why it cannot share.
        """
        reuse = self._reuse_lower_layers(batch.cache_key, cache)
        with self._pass(batch.token_ids), torch.set_grad_enabled(self.gradients), reuse:
            if self.supports_sharing:
                self.decoder(**self._inputs(batch, cache))
            else:
                self.model(**self._inputs(batch, cache), **last_logits_only(self.model))

    def logits(
        self,
        batch: PackedBatch,
        rows: torch.Tensor,
        columns: torch.Tensor,
        cache: SharedPrefixCache | None = None,
    ) -> torch.Tensor:
        """Logits at some tokens of a batch; the language-model head runs on those only.

        Args:
            batch: The batch.
            rows: Row of each token, int64 [n].
            columns: Column of each token, int64 [n].
            cache: The shared prefix; a writable cache keeps the batch's keys and values.

        Returns:
            [n, vocabulary] in the model's dtype.
        """

        def select(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
            hidden = output.last_hidden_state
            output.last_hidden_state = hidden[rows.to(hidden.device), columns.to(hidden.device)][None]
            return output

        reuse = self._reuse_lower_layers(batch.cache_key, cache)
        # The whole model runs, not its head alone: some models scale or cap the logits after it.
        hook = self.decoder.register_forward_hook(select)
        try:
            with self._pass(batch.token_ids), torch.set_grad_enabled(self.gradients), reuse:
                return self.model(**self._inputs(batch, cache)).logits[0]
        finally:
            hook.remove()

    def decode_step(self, cache: SharedPrefixCache, tokens: Sequence[int]) -> torch.Tensor:
        """Run one more token of each sequence of a cache.

        Args:
            cache: See `SharedPrefixCache.assign_sequences`.
            tokens: One token per sequence.

        Returns:
            Logits after each token, [sequences, vocabulary] in the model's dtype.
        """
        positions, mask = cache.next_token_inputs(self.dtype, self.device)
        token_ids = torch.zeros(positions.shape, dtype=torch.long)
        token_ids[cache.rows, cache.slots] = torch.tensor(tokens)
        if self.position_ids is not None:  # decoded tokens are text, whose position is the same on all axes
            positions = positions.expand(len(self.position_ids([])), -1, -1)
        batch = PackedBatch(token_ids.to(self.device), positions, mask)
        return self.logits(batch, cache.rows, cache.slots, cache)

    def with_gradients(self) -> SharedPrefixModel:
        """A copy whose passes can be differentiated; it runs every layer."""
        other = copy.copy(self)
        other.gradients, other.lower_layers = True, None
        return other

    def for_self_check(self) -> SharedPrefixModel:
        """A copy that can run the test prompts of `make_reference`."""
        return copy.copy(self)

    def make_reference(self) -> ReferenceLogits:
        """Test prompts and the model's own logits for them; call it on a copy from `for_self_check`."""
        return text_reference(self.model, self.device, self.dtype)

    def input_key(self) -> tuple[Hashable, ...]:
        """What decides the input besides token ids; part of the key under which lower layers are cached."""
        return ()

    def _pass(self, token_ids: torch.Tensor) -> AbstractContextManager[None]:
        """Context of each pass, for models whose decoder takes more than is put together here.

        Args:
            token_ids: Of the pass, int64 [rows, length].
        """
        del token_ids
        return nullcontext()

    def _reuse_lower_layers(
        self, key: Hashable, cache: SharedPrefixCache | None
    ) -> AbstractContextManager[None]:
        """Context of a pass with that cache key; None for a decode step."""
        if self.lower_layers is None or key is None:
            return nullcontext()
        return self.lower_layers.reuse((key, self.input_key()), cache)

    def _inputs(self, batch: PackedBatch, cache: SharedPrefixCache | None) -> dict[str, Any]:
        inputs: dict[str, Any] = {**self.embed(batch.token_ids), "attention_mask": batch.mask}
        if batch.position_ids is not None:
            inputs["position_ids"] = batch.position_ids
        if cache is not None:
            inputs[self._cache_argument] = cache
        return {**inputs, "use_cache": cache is not None}


def _cache_argument(decoder: nn.Module) -> str:
    """Name of the decoder's argument for the cache: transformers renames it from 5.24 on, class by class."""
    return "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"


def _max_shared_length(config: Any) -> float:
    """Length beyond which tokens do not see all before them, or positions are rotated differently."""
    limits = [
        getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")
    ]
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if parameters.get("rope_type") in ("dynamic", "longrope"):
            limits.append(
                parameters.get("original_max_position_embeddings") or config.max_position_embeddings
            )
    return min((limit for limit in limits if isinstance(limit, int)), default=math.inf)
