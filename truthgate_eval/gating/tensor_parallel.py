"""Projections that transformers' tensor parallelism has split over processes (`tp_plan=auto`).

An attention output projection W_o is split by its input features: each process has the outputs of some heads,
multiplies them by its part of W_o, and the products are summed. What a hook sees before W_o is therefore this
process's part of the features, and what it sees after W_o is complete. transformers 5.24 makes the weights
`DTensor`s, and leaves the numbers of features in the module as they are in one process. transformers 5.0
marks the modules instead, and has plain tensors, or with torch 2.6 hands `DTensor`s from one module to the
next: what a hook sees does not say which part a process has, and such a model is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import transformers
from torch import nn

from truthgate_eval.errors import AttentionLayoutError


def own_input_features(module: nn.Module, vector: torch.Tensor) -> torch.Tensor:
    """The part of a vector over a projection's input features that belongs to this process.

    Args:
        module: The projection.
        vector: [input features].

    Returns:
        The whole vector where the projection is not split.
    """
    for count, place in _splits_of_input(module):
        vector = vector.chunk(count)[place]  # as torch splits a DTensor
    return vector


def split_of_heads(module: nn.Module) -> int:
    """Over how many processes a projection's input features, and with them the heads, are split; 1 if not."""
    total = 1
    for count, _ in _splits_of_input(module):
        total *= count
    return total


def is_distributed(weight: torch.Tensor) -> bool:
    """Whether a weight is spread over processes."""
    return hasattr(weight.data, "device_mesh")


def _splits_of_input(module: nn.Module) -> Iterator[tuple[int, int]]:
    """For each split of the input features: into how many parts, and which of them this process has.

    Raises:
        AttentionLayoutError: The projection is split by a transformers that does not say how.
    """
    if getattr(module, "_hf_tp_plan", None) is not None:
        raise AttentionLayoutError(
            f"transformers {transformers.__version__} splits attention output projections over processes "
            "without saying which part each has: use a newer transformers, such as 5.24, or no tp_plan"
        )
    weight: Any = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or not is_distributed(weight):
        return
    weight = cast(Any, weight)  # a DTensor
    mesh = weight.device_mesh
    for dimension, placement in enumerate(weight.placements):
        if placement.is_shard(weight.ndim - 1):
            yield mesh.size(dimension), mesh.get_local_rank(dimension)
