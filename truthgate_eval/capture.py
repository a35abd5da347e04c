"""Every head's activation at one token of each sequence: the last token of the answer.

METHOD.md, "Truth scores", step 2. Only the text decoder runs, without the language-model
head, and hooks keep the wanted position of every layer at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from truthgate_eval.anatomy import Anatomy, find_anatomy

log = logging.getLogger(__name__)


def capture(
    model: Any,
    sequences: Sequence[Sequence[int]],
    *,
    site: str = "post",
    batch_size: int = 8,
    anatomy: Anatomy | None = None,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Activations at the last token of every sequence.

    Sequences are sorted by length, so that a batch carries little padding; a batch that does
    not fit in memory is halved and tried again.

    Args:
        model: A transformers model, in whatever dtype it computes.
        sequences: Token ids, each sequence at least one token.
        site: `post` reads the attention output projection's output, `pre` its input.
        batch_size: Sequences to a batch.
        anatomy: The model's anatomy, if it is known already.
        progress: Called with the number of sequences done since the last call.

    Returns:
        float32 [n, layers, heads, width], in the order of `sequences`.
    """
    anatomy = anatomy or find_anatomy(model)
    width = anatomy.head_width(site)
    result = np.empty((len(sequences), anatomy.num_layers, anatomy.num_heads * width), dtype=np.float32)
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    done = 0
    while done < len(order):
        batch = order[done : done + batch_size]
        try:
            result[batch] = _forward(anatomy, [sequences[i] for i in batch], site)
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size //= 2
            torch.cuda.empty_cache()
            log.warning("out of memory: going on with batches of %d", batch_size)
            continue
        done += len(batch)
        if progress is not None:
            progress(len(batch))
    return result.reshape(len(sequences), anatomy.num_layers, anatomy.num_heads, width)


def _forward(anatomy: Anatomy, sequences: list[Sequence[int]], site: str) -> NDArray[np.float32]:
    """One batch: [batch, layers, features] at each sequence's last token."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    tokens = torch.zeros((len(sequences), int(lengths.max())), dtype=torch.long)
    for row, sequence in zip(tokens, sequences, strict=True):
        row[: len(sequence)] = torch.tensor(sequence)
    # Padding stands to the right, where a causal decoder's real tokens never look.
    mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
    device = _input_device(anatomy.decoder)
    with LastToken(anatomy, lengths - 1, site) as kept, torch.no_grad():
        anatomy.decoder(input_ids=tokens.to(device), attention_mask=mask.to(device), use_cache=False)
    return kept.stacked()


class LastToken:
    """Context manager that keeps one position of every layer's projection, while the decoder runs."""

    def __init__(self, anatomy: Anatomy, positions: torch.Tensor, site: str) -> None:
        self.anatomy, self.positions, self.site = anatomy, positions, site
        self.kept: dict[int, torch.Tensor] = {}

    def __enter__(self) -> LastToken:
        self._hooks = []
        for layer, projection in enumerate(self.anatomy.projections):
            self._hooks.append(self._hook(layer, projection.module))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook(self, layer: int, module: nn.Module) -> Any:
        if self.site == "pre":
            return module.register_forward_pre_hook(lambda _module, args: self._keep(layer, args[0]))
        return module.register_forward_hook(lambda _module, _args, output: self._keep(layer, output))

    def _keep(self, layer: int, x: torch.Tensor) -> None:
        batch = len(self.positions)
        x = x.reshape(batch, -1, x.shape[-1])  # some models flatten batch and length
        rows = torch.arange(batch, device=x.device)
        self.kept[layer] = x[rows, self.positions.to(x.device)].float()

    def stacked(self) -> NDArray[np.float32]:
        """float32 [batch, layers, features]; moved to the CPU in one piece per layer."""
        return np.stack([self.kept[layer].cpu().numpy() for layer in range(self.anatomy.num_layers)], axis=1)


def _input_device(decoder: nn.Module) -> torch.device:
    device = next(decoder.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device
