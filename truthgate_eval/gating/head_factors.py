"""Factors on attention heads that gradients flow through: how an answer depends on a gate.

`gate` holds a gate that is given; here the factors are a tensor of the caller's, one per head, or one per
head and document where several documents run in one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from truthgate_eval.gating.attention_layout import AttentionLayout, Site


class HeadFactors:
    """Context manager that multiplies every head's output by a factor, at the site of a gate.

    Attributes:
        factors: float32 [layers, heads]; or [documents, layers, heads], where `owners` says which document a
            token belongs to.
        owners: int64 [rows, length]; None where all tokens have the same factors.

    Example:
        Gradients of each document's log-odds with respect to its gate, at g = 1:

            factors = torch.ones(documents, *layout.shape, requires_grad=True)
            with HeadFactors(layout, "post") as heads:
                heads.factors, heads.owners = factors, owners
                log_odds().sum().backward()
    """

    def __init__(self, layout: AttentionLayout, site: Site) -> None:
        self.layout, self.site = layout, site
        self.widths = layout.head_widths(site)
        self.factors: torch.Tensor | None = None
        self.owners: torch.Tensor | None = None
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> HeadFactors:
        for layer, projection in enumerate(self.layout.projections):
            scale = self._scale(layer)
            if self.site == "pre":
                self._hooks.append(projection.module.register_forward_pre_hook(_on_input(scale)))
            else:
                self._hooks.append(projection.module.register_forward_hook(_on_output(scale)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _scale(self, layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def scale(x: torch.Tensor) -> torch.Tensor:
            if self.factors is None:
                return x
            factors = self.factors.to(x.device)
            heads = x.unflatten(-1, (self.layout.num_heads, self.widths[layer]))
            if self.owners is None:
                return (heads * factors[layer, :, None]).flatten(-2).to(x.dtype)
            of_tokens = factors[self.owners.to(x.device), layer]  # [rows, length, heads]
            # Some models flatten rows and tokens before the projection.
            return (heads * of_tokens.reshape(*heads.shape[:-1], 1)).flatten(-2).to(x.dtype)

        return scale


def _on_input(scale: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., tuple[Any, ...]]:
    return lambda _module, args: (scale(args[0]), *args[1:])


def _on_output(scale: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda _module, _args, output: scale(output)
