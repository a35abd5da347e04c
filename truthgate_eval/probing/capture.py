"""Every head's activation at one token of each sequence: the last token of the answer.

Step 2 of `docs/method.md#truth-scores`. Hooks keep the needed positions of every layer. Where the
text decoder computes what the whole model does, only the decoder runs, up to the last layer's projection, and
prefixes that sequences share run once (`inference.shared_prefix`). Where it does not, as with a prompt-tuning
adapter, every sequence runs through the whole model.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.hooks import RemovableHandle

from truthgate_eval.devices import weights_device
from truthgate_eval.errors import ModelError, reason_of
from truthgate_eval.gating.attention_layout import AttentionLayout, Site, find_attention_layout
from truthgate_eval.inference import self_check, tuning
from truthgate_eval.inference.batching import TokenBudget
from truthgate_eval.inference.kv_cache import SharedPrefixCache
from truthgate_eval.inference.prefix_plan import PackedPrompt, PrefixGroup, plan_prefixes
from truthgate_eval.inference.shared_prefix import SharedPrefixModel
from truthgate_eval.probing.capture_key import capture_settings, numbers_digest
from truthgate_eval.probing.capture_store import CaptureStore
from truthgate_eval.probing.kept_batches import KeptBatches
from truthgate_eval.probing.shared_capture import Allocate, SharedCapture, allocate_in_memory
from truthgate_eval.processes import ONE_PROCESS, Processes


def capture(
    model: Any,
    sequences: Sequence[Sequence[int]],
    *,
    site: Site = "post",
    batch_size: int | Literal["auto"] = 8,
    layout: AttentionLayout | None = None,
    forward: SharedPrefixModel | None = None,
    mixed_precision_dtype: torch.dtype | None = None,
    progress: Callable[[int], None] | None = None,
    allocate: Allocate = allocate_in_memory,
    processes: Processes = ONE_PROCESS,
    store: CaptureStore | None = None,
) -> NDArray[np.float32]:
    """Activations at the last token of every sequence.

    Equal sequences run once, and so do shared prefixes. Sequences are sorted by length, so that a batch
    has little padding. A batch that does not fit in memory is halved and tried again.

    Several processes make the batches of one, and each runs some of them.

    Args:
        model: A transformers model, in whatever dtype it computes.
        sequences: Token ids, each sequence at least one token.
        site: `post` reads the attention output projection's output, `pre` its input.
        batch_size: A batch has at most as many tokens as this many of the longest sequences; `auto` finds
            a number that fits. On a CPU, a batch has no more tokens than fit in the cache.
        layout: The model's attention layout, if it is known already.
        forward: The model with shared prefixes, if it has been checked already.
        mixed_precision_dtype: What the model computes in under autocast, as lm-eval's option of that name;
            None for no autocast.
        progress: Called with the number of sequences that were run since the last call.
        allocate: Makes the array that is returned; `allocate_activations` makes it on disk where memory is
            too small. By default in memory.
        processes: The processes that call this with the same sequences.
        store: Where finished batches are kept, and those of an interrupted run are found.

    Returns:
        float32 [n, layers, heads, width], in the order of `sequences`; in a process other than the first,
        only the rows of the sequences that it ran. Features beyond the width of a narrower layer's heads
        are 0.

    Raises:
        ModelError: The model does not run.
        ProcessError: Another process has failed.
    """
    layout = layout or find_attention_layout(model)
    if forward is None:
        with autocast(model, mixed_precision_dtype):
            forward = self_check.load(model, layout.decoder)
    if not forward.supports_sharing:
        with autocast(model, mixed_precision_dtype):
            _check_whole_model(forward)
    budget = TokenBudget.for_batch_size(batch_size, sequences, forward.device)
    if forward.device.type == "cpu":
        budget.tokens = min(budget.tokens, tuning.CAPTURE_TOKENS_PER_THREAD * torch.get_num_threads())
    # Processes with the same budget make the same batches.
    budget.tokens = min(processes.exchange(budget.tokens))
    batches = list(_batches(sequences, forward, budget))
    own = [batches[i] for i in processes.block([batch.num_tokens for batch in batches])]
    shape = (len(sequences), layout.num_layers, layout.num_heads, layout.head_width(site))
    found = SharedCapture(
        shape, [row for batch in own for row in batch.rows()],
        allocate=allocate, processes=processes, progress=progress,
    )  # fmt: skip
    kept = KeptBatches(
        store, found, [batch.rows() for batch in own], lambda: capture_settings(
            model, forward.device, inputs=numbers_digest(sequences), batches=[b.rows() for b in batches],
            shape=shape, site=site, autocast=str(mixed_precision_dtype), sharing=forward.supports_sharing,
        ), processes,
    )  # fmt: skip
    for _, of_group in itertools.groupby(enumerate(own), key=lambda numbered: id(numbered[1].group)):
        _run_group(list(of_group), forward, layout, budget, found, site, mixed_precision_dtype, kept)
    kept.finish()
    return found.gather()


@dataclass(frozen=True)
class _Batch:
    """Packed prompts of one group that run together if memory holds them.

    Attributes:
        group: The group, with the prefix that all its prompts share.
        prompts: Those of this batch.
        equal: For each distinct sequence of the plan, the sequences that are equal to it.
    """

    group: PrefixGroup
    prompts: list[PackedPrompt]
    equal: list[list[int]]

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.prompts))

    def rows(self) -> list[int]:
        """The sequences whose activations this batch gives."""
        return [row for prompt in self.prompts for i in prompt.sequence_ids for row in self.equal[i]]


def _batches(
    sequences: Sequence[Sequence[int]], forward: SharedPrefixModel, budget: TokenBudget
) -> Iterator[_Batch]:
    """All batches, group by group."""
    for share, chosen in _by_length(sequences, forward):
        plan = plan_prefixes(
            [sequences[i] for i in chosen], share=share, max_shared_length=forward.max_shared_length
        )
        equal = [[chosen[index] for index in indices] for indices in plan.indices_by_distinct()]
        for group in plan.groups:
            for prompts in budget.batches(group.prompts):
                yield _Batch(group, prompts, equal)


def _run_group(
    batches: Sequence[tuple[int, _Batch]],
    forward: SharedPrefixModel,
    layout: AttentionLayout,
    budget: TokenBudget,
    found: SharedCapture,
    site: Site,
    dtype: torch.dtype | None,
    kept: KeptBatches,
) -> None:
    """Run the numbered batches of one group, after the prefix that they share, where they are not kept."""
    first = batches[0][1]

    @functools.cache  # not at all where all batches are kept
    def prefix() -> SharedPrefixCache | None:
        with autocast(forward.model, dtype):
            return forward.compute_prefix(first.group)

    def run(before: SharedPrefixCache | None, prompts: list[PackedPrompt]) -> None:
        with autocast(forward.model, dtype):
            activations = last_tokens(forward, layout, prompts, before, site)
        sequence_ids = [i for prompt in prompts for i in prompt.sequence_ids]
        for values, i in zip(activations, sequence_ids, strict=True):
            found.put(first.equal[i], values)

    for number, batch in batches:
        limit = kept.take(number)
        if limit is not None:
            budget.tokens = limit
            continue
        budget.run_batches(batch.prompts, functools.partial(run, prefix()))
        kept.add(number, budget.tokens)


def autocast(model: Any, dtype: torch.dtype | None) -> torch.autocast:
    """The context in which lm-eval's `hf` runs a model with `mixed_precision_dtype=dtype`."""
    return torch.autocast(weights_device(model).type, dtype=dtype, enabled=dtype is not None)


def _check_whole_model(forward: SharedPrefixModel) -> None:
    """Run the whole model on two tokens.

    Raises:
        ModelError: It does not run; the message says why.
    """
    try:
        with torch.no_grad():
            forward.model(input_ids=torch.tensor([[0, 1]], device=forward.device), use_cache=False)
    except Exception as error:  # a model's own code may fail in any way
        name = type(forward.model).__name__
        raise ModelError(f"{name} does not run on text: {reason_of(error)}") from error


def _by_length(
    sequences: Sequence[Sequence[int]], forward: SharedPrefixModel
) -> list[tuple[bool, list[int]]]:
    """(whether prefixes may be shared, which sequences): long ones run alone where the model requires it."""
    short = [i for i, sequence in enumerate(sequences) if len(sequence) <= forward.max_shared_length]
    long = [i for i, sequence in enumerate(sequences) if len(sequence) > forward.max_shared_length]
    return [(share, chosen) for share, chosen in ((forward.supports_sharing, short), (False, long)) if chosen]


def last_tokens(
    forward: SharedPrefixModel,
    layout: AttentionLayout,
    prompts: list[PackedPrompt],
    prefix: SharedPrefixCache | None,
    site: Site,
) -> NDArray[np.float32]:
    """[suffixes of all prompts, layers, heads, width] at the last token of each suffix."""
    batch = forward.pack(prompts, prefix)
    rows, columns = batch.last_tokens(prompts)
    with LastTokenHooks(
        layout, columns, site, batch.token_ids.shape[1], rows=rows, stop=forward.supports_sharing
    ) as kept:
        forward.run(batch, prefix)
    return kept.stacked()


class _CaptureDoneError(Exception):
    """Stops a forward pass after the last layer's projection: nothing that follows is needed."""


class LastTokenHooks:
    """Context manager that keeps activations of some positions while the decoder runs.

    The forward pass, and with it the `with` block, ends when the last layer's projection has been read,
    without that layer's MLP and the language-model head. That is not safe inside of PEFT's wrapper, which
    leaves hooks of its own on the model if a pass does not end.

    Args:
        layout: The model's attention layout.
        positions: int [k]; a position of each row of the batch, or of each of `rows`.
        site: `post` or `pre`.
        length: Columns of the batch, padding included. An adapter's virtual tokens stand before them.
        rows: int [k]; batch row of each position. The batch's last row must be among them.
        stop: Whether the pass ends at the last projection. If not, and a pass runs the layers several times,
            the last time counts, which is the answer's.
    """

    def __init__(
        self,
        layout: AttentionLayout,
        positions: torch.Tensor,
        site: Site,
        length: int,
        *,
        rows: torch.Tensor | None = None,
        stop: bool = True,
    ) -> None:
        self.layout, self.positions, self.site, self.length = layout, positions, site, length
        self.rows = torch.arange(len(positions)) if rows is None else rows
        self.stop = stop
        self.kept: dict[int, torch.Tensor] = {}
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> LastTokenHooks:
        for layer, projection in enumerate(self.layout.projections):
            self._hooks.append(self._hook(layer, projection.module))
        return self

    def __exit__(
        self, error: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> bool:
        for hook in self._hooks:
            hook.remove()
        return error is _CaptureDoneError

    def _hook(self, layer: int, module: nn.Module) -> RemovableHandle:
        if self.site == "pre":
            return module.register_forward_pre_hook(lambda _module, args: self._keep(layer, args[0]))
        return module.register_forward_hook(lambda _module, _args, output: self._keep(layer, output))

    def _keep(self, layer: int, x: torch.Tensor) -> None:
        x = x.reshape(int(self.rows.max()) + 1, -1, x.shape[-1])  # some models flatten batch and length
        positions = self.positions.to(x.device) + x.shape[1] - self.length
        self.kept[layer] = x[self.rows.to(x.device), positions].float()
        if self.stop and layer == self.layout.num_layers - 1:
            raise _CaptureDoneError

    def stacked(self) -> NDArray[np.float32]:
        """float32 [positions, layers, heads, width]; moved to the CPU in one piece per layer."""
        heads, widest = self.layout.num_heads, self.layout.head_width(self.site)
        stacked = np.zeros((len(self.positions), self.layout.num_layers, heads, widest), dtype=np.float32)
        for layer, width in enumerate(self.layout.head_widths(self.site)):
            kept = self.kept[layer].cpu().numpy()
            stacked[:, layer, :, :width] = kept.reshape(len(kept), heads, width)
        return stacked
