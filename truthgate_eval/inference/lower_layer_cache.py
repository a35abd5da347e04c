"""What a decoder's lower layers give, kept from one gate to the next.

Where only upper layers are gated, everything below the first of them is the same under every gate: its
hidden states and its keys and values are computed once for each batch.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import nn

from truthgate_eval.inference.kv_cache import LayerState, SharedPrefixCache
from truthgate_eval.inference.prefix_plan import PackedPrompt, PrefixGroup
from truthgate_eval.inference.self_check import decoded_logits, run_safely
from truthgate_eval.inference.shared_prefix import SharedPrefixModel

log = logging.getLogger(__name__)

# The part of the free memory that may be filled: batches need the rest.
_MEMORY_SHARE = 0.25


@dataclass(frozen=True)
class _CachedOutput:
    """What one pass left at the boundary: the last lower layer's output, and all lower keys and values."""

    output: Any
    held: list[LayerState]

    @property
    def memory(self) -> int:
        tensors = [*_tensors(self.output), *(one for pair in self.held for one in pair)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class LowerLayerCache:
    """The layers below the first gated one, which run once for each batch; see `SharedPrefixModel.below`.

    Attributes:
        layers: These layers, from the first on.
        memory: Bytes that may be kept; what comes when they are full is computed every time.
        again: How many passes went on from what was kept.
    """

    def __init__(self, layers: Sequence[nn.Module], memory: int) -> None:
        self.layers, self.memory = list(layers), memory
        self.again = 0
        self._known: dict[Hashable, _CachedOutput] = {}
        self._held = 0

    def clear(self) -> None:
        """Forget all passes."""
        self._known.clear()
        self._held = self.again = 0

    @contextmanager
    def reuse(self, key: Hashable, store: SharedPrefixCache | None) -> Iterator[None]:
        """While the decoder runs in this block, its lower layers run only if they did not for this key.

        Args:
            key: What the pass is about; one that keeps keys and values has another key.
            store: Where the pass leaves its keys and values, if it keeps them.
        """
        keeping = store if store is not None and store.keep else None
        known = self._known.get((key, keeping is not None))
        if known is not None:
            with ExitStack() as stack:
                for layer in self.layers:
                    stack.enter_context(_returning(layer, known.output))
                yield
            self.again += 1
            if keeping is not None:
                keeping.load_layers(known.held)
            return
        outputs: list[Any] = []
        hook = self.layers[-1].register_forward_hook(lambda _module, _args, output: outputs.append(output))
        try:
            yield
        finally:
            hook.remove()
        new = _CachedOutput(outputs[0], [] if keeping is None else keeping.saved_layers(len(self.layers)))
        if self._held + new.memory <= self.memory:
            self._known[key, keeping is not None] = new
            self._held += new.memory


def cache_lower_layers(
    forward: SharedPrefixModel | None, layers: Sequence[nn.Module]
) -> LowerLayerCache | None:
    """Let a forward pass run these lowest layers once for each batch, if the model can be cut there.

    That is found by trying, as for shared prefixes; one log line says where it does not fit.

    Args:
        forward: The forward pass; no gate may be on the layers, now or later. None keeps nothing.
        layers: The decoder's lowest layers; without any it stays as it is.

    Returns:
        What is kept, or None.
    """
    if forward is None or not layers:
        return None
    below = LowerLayerCache(layers, int(_MEMORY_SHARE * _free(forward.device)))
    tried = copy.copy(forward)
    tried.lower_layers = below
    reason = run_safely(lambda: _find_mismatch(tried, below))
    below.clear()
    if reason is not None:
        log.warning(
            "layers below the first gated one run anew for every gate of %s: %s",
            type(forward.model).__name__, reason,
        )  # fmt: skip
        return None
    forward.lower_layers = below
    return below


def _find_mismatch(forward: SharedPrefixModel, below: LowerLayerCache) -> str | None:
    """How passes that go on from what was kept differ from those that kept it; None if they are equal."""
    row = forward.make_reference().prompt
    half = len(row.prefix) // 2
    behind = PackedPrompt(row.prefix[half:], row.suffixes, row.sequence_ids)
    first, again = (
        decoded_logits(
            forward, behind, forward.compute_prefix(PrefixGroup(row.prefix[:half], ())), unpacked=False
        )
        for _ in range(2)
    )
    if below.again != 2:
        return "nothing was kept of a trial"
    return None if torch.equal(first, again) else "the model gives other logits when it is cut there"


def _free(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def _tensors(output: Any) -> list[torch.Tensor]:
    parts = output if isinstance(output, tuple) else (output,)
    return [part for part in parts if isinstance(part, torch.Tensor)]


@contextmanager
def _returning(layer: nn.Module, output: Any) -> Iterator[None]:
    """Let a layer give this without running; accelerate's own replacement of its forward comes back."""
    before = layer.__dict__.get("forward")
    layer.forward = lambda *_args, **_kwargs: output
    try:
        yield
    finally:
        if before is None:
            del layer.forward
        else:
            layer.forward = before
