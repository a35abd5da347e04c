"""Derivatives with respect to a gate that is scaled into weights by hand, without any code of the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

_STEP = 1e-2
# Richardson's extrapolation of central differences: the error is of fourth order in the step.
_STENCIL = {2: -1 / 12, 1: 2 / 3, -1: -2 / 3, -2: 1 / 12}


def gate_derivatives(
    value: Callable[[], float], projections: Sequence[nn.Linear], *, heads: int, site: str
) -> np.ndarray:
    """d value / d g[layer, head] at g = 1, float64 [layers, heads].

    Args:
        value: Runs the model; in float64, since differences lose digits.
        projections: The output projection of each layer's attention; their weights are as before afterwards.
        heads: Query heads of a layer.
        site: `post` scales the head's slice of a projection's output, `pre` of its input.
    """
    found = np.zeros((len(projections), heads))
    for layer, projection in enumerate(projections):
        for head in range(heads):
            for steps, weight in _STENCIL.items():
                with torch.no_grad():
                    before = _scale(projection, head, heads, site, 1 + steps * _STEP)
                    found[layer, head] += weight * value() / _STEP
                    projection.load_state_dict(before)
    return found


def _scale(projection: nn.Linear, head: int, heads: int, site: str, factor: float) -> dict[str, torch.Tensor]:
    """Scale one head in place; the parameters before it."""
    before = {name: value.clone() for name, value in projection.state_dict().items()}
    width = projection.weight.shape[0 if site == "post" else 1] // heads
    own = slice(head * width, (head + 1) * width)
    if site == "pre":
        projection.weight[:, own] *= factor
        return before
    projection.weight[own] *= factor
    if projection.bias is not None:
        projection.bias[own] *= factor
    return before
