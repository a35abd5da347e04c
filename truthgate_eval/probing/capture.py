"""Every head's activation at one token of each sequence: the last token of the answer.

METHOD.md, "Truth scores", step 2. Only the text decoder runs, without the language-model
head, prefixes that sequences share run once (`forward`), and hooks keep the wanted position
of every layer at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from truthgate_eval.gating.attention_layout import AttentionLayout, find_attention_layout
from truthgate_eval.inference.prefix_plan import PackedPrompt, plan_prefixes
from truthgate_eval.inference.shared_prefix import SharedPrefixModel, TokenBudget
from truthgate_eval.probing.activations import ActivationWriter

# Tokens a thread: what more of them need leaves a CPU's cache, and nothing is decoded that needs many.
_CACHED = 512


def capture(
    model: Any,
    sequences: Sequence[Sequence[int]],
    *,
    site: str = "post",
    batch_size: int | str = 8,
    anatomy: AttentionLayout | None = None,
    forward: SharedPrefixModel | None = None,
    progress: Callable[[int], None] | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Activations at the last token of every sequence.

    Equal sequences run once, and so do shared prefixes. Rows are sorted by length, so that a
    batch carries little padding; a batch that does not fit in memory is halved and tried again.

    Args:
        model: A transformers model, in whatever dtype it computes.
        sequences: Token ids, each sequence at least one token.
        site: `post` reads the attention output projection's output, `pre` its input.
        batch_size: A batch has at most as many tokens as so many of the longest sequences; `auto` finds
            a number that fits. On a CPU it has no more than the cache holds.
        anatomy: The model's anatomy, if it is known already.
        forward: The model's forward pass, if it has been tried already.
        progress: Called with the number of sequences done since the last call.
        out: Where to write, float32 [n, layers, heads, width]; a `numpy.memmap` keeps
            on disk what memory does not hold (`activations.make_room`). By default a new array.

    Returns:
        float32 [n, layers, heads, width], in the order of `sequences`; `out` if it was given.
    """
    anatomy = anatomy or find_attention_layout(model)
    shape = (len(sequences), anatomy.num_layers, anatomy.num_heads, anatomy.head_width(site))
    result = np.empty(shape, dtype=np.float32) if out is None else out
    if result.shape != shape or result.dtype != np.float32:
        raise ValueError(f"out must be float32 {shape}, not {result.dtype} {result.shape}")
    writer = ActivationWriter(result)
    forward = forward or SharedPrefixModel(model, anatomy.decoder)
    budget = TokenBudget.for_batch_size(batch_size, sequences, forward.device)
    if forward.device.type == "cpu":
        budget.tokens = min(budget.tokens, _CACHED * torch.get_num_threads())
    for share, chosen in _by_length(sequences, forward):
        chosen_plan = plan_prefixes(
            [sequences[i] for i in chosen], share=share, max_shared_length=forward.max_shared_length
        )
        owners: list[list[int]] = [[] for _ in range(chosen_plan.num_distinct)]
        for i, kind in zip(chosen, chosen_plan.distinct_ids, strict=True):
            owners[kind].append(i)
        for group in chosen_plan.groups:
            trunk = forward.compute_prefix(group)

            def run(rows: list[PackedPrompt], trunk: Any = trunk, owners: list[list[int]] = owners) -> None:
                activations = _last_tokens(forward, anatomy, rows, trunk, site)
                members = [owners[member] for row in rows for member in row.sequence_ids]
                for values, mine in zip(activations, members, strict=True):
                    writer.put(mine, values.reshape(shape[1:]))
                if progress is not None:
                    progress(sum(map(len, members)))

            budget.run_batches(group.prompts, run)
    writer.drop()
    return result


def _by_length(
    sequences: Sequence[Sequence[int]], forward: SharedPrefixModel
) -> list[tuple[bool, list[int]]]:
    """Which sequences may share prefixes, and which are too long for the model to share them rightly."""
    short = [i for i, sequence in enumerate(sequences) if len(sequence) <= forward.max_shared_length]
    long = [i for i, sequence in enumerate(sequences) if len(sequence) > forward.max_shared_length]
    return [(share, chosen) for share, chosen in ((forward.supports_sharing, short), (False, long)) if chosen]


def _last_tokens(
    forward: SharedPrefixModel, anatomy: AttentionLayout, rows: list[PackedPrompt], trunk: Any, site: str
) -> NDArray[np.float32]:
    """[branches of all rows, layers, features] at each branch's last token."""
    batch = forward.pack(rows, trunk)
    lanes, places = batch.last_tokens(rows)
    with LastTokenHooks(anatomy, places, site, rows=lanes) as kept:
        forward.run(batch, trunk)
    return kept.stacked()


class _CaptureDoneError(Exception):
    """Ends a pass behind the last projection: nothing that comes after it is read."""


class LastTokenHooks:
    """Context manager that keeps some positions of every layer's projection, while the decoder runs.

    The block ends where the last layer's projection has been read, without what comes after it (that
    layer's MLP, a language-model head).

    Without `rows`, `positions` has one position of each row of the batch; with them, position
    `positions[i]` of row `rows[i]` is kept, in that order, and the last row must be among them.
    """

    def __init__(
        self,
        anatomy: AttentionLayout,
        positions: torch.Tensor,
        site: str,
        *,
        rows: torch.Tensor | None = None,
    ) -> None:
        self.anatomy, self.positions, self.site = anatomy, positions, site
        self.rows = torch.arange(len(positions)) if rows is None else rows
        self.kept: dict[int, torch.Tensor] = {}

    def __enter__(self) -> LastTokenHooks:
        self._hooks = []
        for layer, projection in enumerate(self.anatomy.projections):
            self._hooks.append(self._hook(layer, projection.module))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        for hook in self._hooks:
            hook.remove()
        return kind is _CaptureDoneError

    def _hook(self, layer: int, module: nn.Module) -> Any:
        if self.site == "pre":
            return module.register_forward_pre_hook(lambda _module, args: self._keep(layer, args[0]))
        return module.register_forward_hook(lambda _module, _args, output: self._keep(layer, output))

    def _keep(self, layer: int, x: torch.Tensor) -> None:
        x = x.reshape(int(self.rows.max()) + 1, -1, x.shape[-1])  # some models flatten batch and length
        self.kept[layer] = x[self.rows.to(x.device), self.positions.to(x.device)].float()
        if layer == self.anatomy.num_layers - 1:
            raise _CaptureDoneError

    def stacked(self) -> NDArray[np.float32]:
        """float32 [positions, layers, features]; moved to the CPU in one piece per layer."""
        return np.stack([self.kept[layer].cpu().numpy() for layer in range(self.anatomy.num_layers)], axis=1)
