"""Outputs of a decoder's lower layers, kept from one gate to the next.

Where only upper layers are gated, all layers below the first gated one give the same under every gate. Their
hidden states, keys and values are computed once for each batch. See `docs/performance.md#sweeps`;
`self_check.cache_lower_layers` puts a cache on a model.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from truthgate_eval.inference.kv_cache import LayerState, SharedPrefixCache


@dataclass(frozen=True)
class _CachedOutput:
    """What one pass left: the highest cached layer's output, and keys and values of all cached layers."""

    output: Any
    states: list[LayerState]

    @property
    def memory(self) -> int:
        tensors = [*_tensors(self.output), *(tensor for state in self.states for tensor in state)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class LowerLayerCache:
    """Outputs of a decoder's lowest layers by batch; no gate may be on these layers.

    Attributes:
        layers: These layers, from the first on.
        memory: The most bytes to keep. Batches that come when it is full are computed every time.
        num_reused: How many passes used a cached output.
    """

    def __init__(self, layers: Sequence[nn.Module], memory: int) -> None:
        self.layers, self.memory = list(layers), memory
        self.num_reused = 0
        self._outputs: dict[Hashable, _CachedOutput] = {}
        self._used_memory = 0

    @property
    def used_memory(self) -> int:
        """Bytes of the outputs that are kept."""
        return self._used_memory

    def clear(self) -> None:
        """Drop all outputs."""
        self._outputs.clear()
        self._used_memory = self.num_reused = 0

    @contextmanager
    def reuse(self, key: Hashable, cache: SharedPrefixCache | None) -> Iterator[None]:
        """Context of one pass of the decoder, whose lower layers run only if no output is kept for the key.

        Args:
            key: Identifies the input, with the shared prefix before it.
            cache: The key-value cache of the pass. A pass that writes to it keeps more than one that does
                not, so they are told apart.
        """
        written = cache if cache is not None and cache.writable else None
        cached = self._outputs.get((key, written is not None))
        if cached is None:
            with self._record((key, written is not None), written):
                yield
            return
        with ExitStack() as stack:
            for layer in self.layers:
                stack.enter_context(_returning(layer, cached.output))
            yield
        self.num_reused += 1
        if written is not None:
            written.load_layers(cached.states)

    @contextmanager
    def _record(self, key: Hashable, written: SharedPrefixCache | None) -> Iterator[None]:
        """Keep what a pass gives, if there is memory for it."""
        outputs: list[Any] = []
        hook = self.layers[-1].register_forward_hook(lambda _module, _args, output: outputs.append(output))
        try:
            yield
        finally:
            hook.remove()
        new = _CachedOutput(outputs[0], [] if written is None else written.saved_layers(len(self.layers)))
        if self._used_memory + new.memory <= self.memory:
            self._outputs[key] = new
            self._used_memory += new.memory


def _tensors(output: Any) -> list[torch.Tensor]:
    parts = output if isinstance(output, tuple) else (output,)
    return [part for part in parts if isinstance(part, torch.Tensor)]


@contextmanager
def _returning(layer: nn.Module, output: Any) -> Iterator[None]:
    """Make a layer return this without running. A replaced forward, such as accelerate's, is put back."""
    replaced = layer.__dict__.get("forward")
    layer.forward = lambda *_args, **_kwargs: output
    try:
        yield
    finally:
        if replaced is None:
            del layer.forward
        else:
            layer.forward = replaced
