"""Directions along which ITI shifts heads, and how far activations spread along them (`gating.shift`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def class_mean_difference(activations: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """Mean activation of the truthful sequences minus that of the others, [layers, heads, width].

    Args:
        activations: [n, layers, heads, width]; read layer by layer, since it may be a file.
        labels: int [n]; 1 where the answer is truthful. Both labels occur.
    """
    layers = _layers(activations)
    right, wrong = (
        np.stack([layer[labels == label].mean(axis=0, dtype=np.float64) for layer in layers])
        for label in (1, 0)
    )
    return (right - wrong).astype(np.float32)


def deviation_along(activations: NDArray[Any], directions: NDArray[Any]) -> NDArray[np.float32]:
    """Standard deviation of the activations along a direction of each head, [layers, heads]; 0 along none.

    Args:
        activations: [n, layers, heads, width].
        directions: [layers, heads, width], of any length.
    """
    length = np.linalg.norm(directions, axis=-1, keepdims=True)
    unit = np.divide(directions, length, out=np.zeros(directions.shape, np.float64), where=length > 0)
    return np.stack(
        [
            np.einsum("nhw,hw->nh", layer, own).std(axis=0).astype(np.float32)
            for layer, own in zip(_layers(activations), unit, strict=True)
        ]
    )


def _layers(activations: NDArray[Any]) -> list[NDArray[Any]]:
    """Each layer's activations [n, heads, width]: views, so that only one layer at a time is read."""
    return [activations[:, layer] for layer in range(activations.shape[1])]
