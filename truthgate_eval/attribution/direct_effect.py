"""What a head's own write adds to the right answer's logit against the wrong one's.

The head's output at the last token of the context goes through the rest of the residual stream unchanged,
through the final normalization with its scale held fixed, and through the unembedding of the first token in
which the answers differ (direct logit attribution, Elhage et al. 2021). What later layers make of it does
not count. Constant factors after the unembedding are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from truthgate_eval.attribution.log_odds import AnswerDocument
from truthgate_eval.errors import ProbeError
from truthgate_eval.gating.attention_layout import AttentionLayout, Site
from truthgate_eval.inference.prefix_plan import PackedPrompt
from truthgate_eval.inference.shared_prefix import SharedPrefixModel
from truthgate_eval.processes import ONE_PROCESS, Processes


def direct_effects(
    model: SharedPrefixModel,
    layout: AttentionLayout,
    documents: Sequence[AnswerDocument],
    *,
    site: Site = "pre",
    batch_size: int = 8,
    progress: Callable[[int], object] = lambda _: None,
    processes: Processes = ONE_PROCESS,
) -> NDArray[np.float32]:
    """Each head's direct effect on each document's logit difference.

    Args:
        model: The model, without a gate.
        layout: Its attention heads.
        documents: Questions with right and wrong answers.
        site: `pre` takes what the head writes through its columns of W_o, `post` its slice of W_o's output.
        batch_size: Documents in a batch.
        progress: Called with the number of documents done since the last call.
        processes: Those that call this with the same documents, and take turns at the batches.

    Returns:
        float32 [documents, layers, heads]; complete in the first process only.

    Raises:
        ProbeError: The model has no final normalization or no unembedding matrix.
        ProcessError: Another process has failed.
    """
    effects = np.zeros((len(documents), *layout.shape), dtype=np.float32)
    done: list[int] = []
    order = sorted(range(len(documents)), key=lambda i: documents[i].context_length)
    with _ResidualWrites(model, layout) as writes:
        for start in range(0, len(order), batch_size)[processes.rank :: processes.count]:
            indices = order[start : start + batch_size]
            contexts = [documents[i].sequences[0][: documents[i].context_length] for i in indices]
            prompts = [PackedPrompt((), (tokens,), (n,)) for n, tokens in enumerate(contexts)]
            batch = model.pack(prompts)
            writes.rows, writes.columns = batch.last_tokens(prompts)
            model.run(batch)
            directions = torch.stack([_logit_direction(model.model, documents[i]) for i in indices])
            for layer in range(layout.num_layers):
                effects[indices, layer] = writes.effects(layer, directions, site).numpy()
            done += indices
            progress(len(indices))
    processes.gather_rows(done, effects[done], effects.__setitem__)
    return effects


def _logit_direction(model: Any, document: AnswerDocument) -> torch.Tensor:
    """Rows of the unembedding, right answers' mean minus wrong ones': float32 [hidden]."""
    unembedding = model.get_output_embeddings()
    if unembedding is None:
        raise ProbeError(f"{type(model).__name__} has no unembedding matrix: a direct effect needs one")
    position = document.context_length
    rows = {
        truthful: [
            sequence[position]
            for sequence, own in zip(document.sequences, document.truthful, strict=True)
            if own == truthful
        ]
        for truthful in (True, False)
    }
    weight = unembedding.weight.detach().float()
    return (weight[rows[True]].mean(dim=0) - weight[rows[False]].mean(dim=0)).cpu()


class _ResidualWrites:
    """Context manager that keeps what the heads of each layer write at some tokens.

    Attributes:
        rows: int64 [n]; rows of the tokens.
        columns: int64 [n]; their columns.
    """

    def __init__(self, model: SharedPrefixModel, layout: AttentionLayout) -> None:
        self.layout = layout
        self.rows = self.columns = torch.zeros(0, dtype=torch.long)
        self._final_norm = find_final_norm(model, layout)
        self._inputs: dict[int, torch.Tensor] = {}
        self._outputs: dict[int, torch.Tensor] = {}
        self._scales: dict[int, torch.Tensor] = {}  # of a normalization between W_o and the residual stream
        self._written: dict[int, torch.Tensor] = {}  # W_o's whole output, to recognise it
        self._final: tuple[torch.Tensor, torch.Tensor] | None = None
        self._hooks: list[Any] = []
        self._records = True

    def __enter__(self) -> _ResidualWrites:
        for layer, projection in enumerate(self.layout.projections):
            self._hooks.append(projection.module.register_forward_hook(self._keep_projection(layer)))
            block = self.layout.layers[self.layout.layer_numbers[layer]]
            for child in block.children():
                if _is_norm(child):
                    self._hooks.append(child.register_forward_hook(self._keep_scale(layer)))
        self._hooks.append(self._final_norm.register_forward_hook(self._keep_final))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _pick(self, x: torch.Tensor) -> torch.Tensor:
        """Values at the tokens, float32 [n, features]; some models flatten rows and columns."""
        x = x.detach().reshape(int(self.rows.max()) + 1, -1, x.shape[-1])
        return x[self.rows.to(x.device), self.columns.to(x.device)].float().cpu()

    def _keep_projection(self, layer: int) -> Callable[..., None]:
        def keep(_module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            if not self._records:
                return
            self._inputs[layer], self._outputs[layer] = self._pick(args[0]), self._pick(output)
            self._written[layer] = output
            self._scales.pop(layer, None)

        return keep

    def _keep_scale(self, layer: int) -> Callable[..., None]:
        def keep(_module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            written = self._written.get(layer)
            if written is not None and args[0].data_ptr() == written.data_ptr():
                self._scales[layer] = _fixed_scale(self._pick(args[0]), self._pick(output))

        return keep

    def _keep_final(self, _module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        self._final = self._pick(args[0]), self._pick(output)

    def effects(self, layer: int, directions: torch.Tensor, site: Site) -> torch.Tensor:
        """<what each head writes, direction> at each token, float32 [n, heads].

        Args:
            layer: Row of the layer among the attention layers.
            directions: float32 [n, hidden]; directions of the logits, after the final normalization.
            site: As in `direct_effects`.
        """
        assert self._final is not None
        before, after = self._final
        directions = _before_norm(self._final_norm, before, after, directions)
        if layer in self._scales:
            directions = directions * self._scales[layer]
        heads = self.layout.num_heads
        if site == "post":
            return (self._outputs[layer] * directions).unflatten(-1, (heads, -1)).sum(-1)
        module = self.layout.projections[layer].module
        inputs = self._inputs[layer]
        alone = torch.zeros(len(inputs), heads, *inputs.shape[1:])
        width = inputs.shape[-1] // heads
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            alone[:, head, own] = inputs[:, own]
        written = self._project(module, alone) - self._project(module, torch.zeros_like(alone[:1, :1]))
        return torch.einsum("nhd,nd->nh", written, directions)

    def _project(self, module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        """A projection's output on other inputs, whatever its class."""
        parameter = next(module.parameters())
        dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
        self._records = False
        try:
            with torch.no_grad():
                return module(inputs.to(parameter.device, dtype)).float().cpu()
        finally:
            self._records = True


def find_final_norm(model: SharedPrefixModel, layout: AttentionLayout) -> nn.Module:
    """The normalization after the last layer.

    Raises:
        ProbeError: There is none, or several.
    """
    inside = {module for layer in layout.layers for module in layer.modules()}
    ran: list[nn.Module] = []
    norms = [module for module in layout.decoder.modules() if module not in inside and _is_norm(module)]
    with _hooked(norms, lambda module: ran.append(module)):
        model.run(model.pack([PackedPrompt((), ((0, 1),), (0,))]))
    if not ran:
        raise ProbeError(
            f"{type(layout.decoder).__name__} has no final normalization to attribute logits through"
        )
    return ran[-1]


@contextmanager
def _hooked(modules: Sequence[nn.Module], call: Callable[[nn.Module], object]) -> Iterator[None]:
    hooks = [
        module.register_forward_hook(lambda own, _args, _output: call(own) and None) for module in modules
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _fixed_scale(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """What a root-mean-square normalization multiplies each feature by."""
    return torch.where(before == 0, torch.zeros_like(before), after / before)


def _before_norm(
    norm: nn.Module, before: torch.Tensor, after: torch.Tensor, directions: torch.Tensor
) -> torch.Tensor:
    """Directions before a normalization whose scale is held fixed, [n, features]."""
    if not isinstance(norm, nn.LayerNorm):
        return directions * _fixed_scale(before, after)
    deviation = (before.var(dim=-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    weight = 1.0 if norm.weight is None else norm.weight.detach().float().cpu()
    scaled = directions * weight / deviation
    return scaled - scaled.mean(dim=-1, keepdim=True)
