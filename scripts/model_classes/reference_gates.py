"""Gates computed from scratch, without `truthgate_eval.gating.gate`: in the weights and in the attention."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from truthgate_eval.gating.attention_layout import AttentionLayout
from truthgate_eval.gating.gate import Gate


@contextlib.contextmanager
def kept_weights(layout: AttentionLayout) -> Iterator[None]:
    """Restore the projections' weights and biases at the end of the block."""
    parameters = [parameter for p in layout.projections for parameter in p.module.parameters()]
    before = [parameter.data.clone() for parameter in parameters]
    try:
        yield
    finally:
        for parameter, data in zip(parameters, before, strict=True):
            parameter.data = data


@contextlib.contextmanager
def scaled_weights(layout: AttentionLayout, gate: Gate) -> Iterator[None]:
    """Rows (`post`) or columns (`pre`) of every W_o times g, by hand."""
    with kept_weights(layout):
        for projection, g in zip(layout.projections, gate.values, strict=True):
            module: Any = projection.module
            is_conv = type(module).__name__ == "Conv1D"
            matrix = module.weight.data.T if is_conv else module.weight.data  # [out, in]
            side = 0 if gate.site == "post" else 1
            factors = torch.from_numpy(g).repeat_interleave(matrix.shape[side] // len(g))
            scaled = matrix * (factors[:, None] if side == 0 else factors[None])
            module.weight.data = scaled.T.contiguous() if is_conv else scaled
            if side == 0 and getattr(module, "bias", None) is not None:
                module.bias.data = module.bias.data * factors
        yield


@contextlib.contextmanager
def scaled_heads(layout: AttentionLayout, gate: Gate) -> Iterator[list[int]]:
    """The class's own attention function, its output times g for each head.

    Yields:
        The layers that were scaled, one entry for each call. It stays empty where a class computes attention
        inside a module's `forward`.
    """
    rows = {number: row for row, number in enumerate(layout.layer_numbers)}
    within = set(layout.decoder.modules())
    scaled: list[int] = []

    def wrap(forward: Any) -> Any:
        def gated(module: Any, *args: Any, **kwargs: Any) -> Any:
            output, weights = forward(module, *args, **kwargs)
            layer = getattr(module, "layer_idx", None)
            if module in within and layer in rows:
                scaled.append(layer)
                g = torch.from_numpy(gate.values[rows[layer]])
                # [batch, tokens, heads, head_dim]; some classes join the last two.
                heads = output.unflatten(-1, (len(g), -1)) if output.ndim == 3 else output
                output = (heads * g[:, None]).reshape(output.shape)
            return output, weights

        return gated

    files: set[Any] = {sys.modules[type(module).__module__] for module in within}
    before = {
        file: file.eager_attention_forward for file in files if hasattr(file, "eager_attention_forward")
    }
    for file, forward in before.items():
        file.eager_attention_forward = wrap(forward)
    try:
        yield scaled
    finally:
        for file, forward in before.items():
            file.eager_attention_forward = forward


def normalizes_after_attention(layout: AttentionLayout, run: Callable[[], Any]) -> bool:
    """Whether a normalization of the attention block runs between the attention function and the first W_o.

    Args:
        layout: The model's attention heads.
        run: Runs the decoder.
    """
    at_norms: list[int] = []  # for each normalization that ran, the attention functions before it
    found: list[bool] = []
    projection = layout.projections[0]
    block = layout.decoder.get_submodule(projection.name.rpartition(".")[0])
    norms = [module for module in block.modules() if "norm" in type(module).__name__.lower()]
    with scaled_heads(layout, Gate(np.ones(layout.shape, np.float32), "pre")) as calls:
        handles = [norm.register_forward_hook(lambda *_: at_norms.append(len(calls))) for norm in norms]
        handles.append(projection.module.register_forward_pre_hook(lambda *_: found.append(1 in at_norms)))
        try:
            run()
        finally:
            for handle in handles:
                handle.remove()
    return any(found)
