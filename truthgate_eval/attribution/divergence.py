"""How much a head's output at the answer changes when the context is taken away.

No label is needed, so no surface cue of right answers can explain the score.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def context_divergence(with_context: NDArray[Any], without: NDArray[Any]) -> NDArray[np.float64]:
    """|a - a'| of each sequence, over the mean |a| of its head: float64 [n, layers, heads].

    Args:
        with_context: Activations [n, layers, heads, width] of the sequences.
        without: Activations of the same sequences without their context.

    Example:
        >>> a = np.array([[[[3.0, 4.0]]], [[[0.0, 5.0]]]])
        >>> context_divergence(a, np.zeros_like(a)).ravel().tolist()
        [1.0, 1.0]
    """
    size = _norms(with_context).mean(axis=0, keepdims=True)
    changed = np.stack(
        [np.linalg.norm(a - b, axis=-1) for a, b in zip(with_context, without, strict=True)]
    ).astype(np.float64)
    return changed / np.where(size > 0, size, 1.0)


def _norms(activations: NDArray[Any]) -> NDArray[np.float64]:
    return np.stack([np.linalg.norm(own, axis=-1) for own in activations]).astype(np.float64)
