"""Whether the output of a linear map is what its attention block returns.

What is added to an output projection's output is added to what the block returns, so the gradient of the
block's output with respect to the map's output is the identity. That holds where the block reshapes or adds a
residual after the projection, and for no other map in a block. Where the block ends in a normalization (BERT
and its kin), it holds for the input of that normalization.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle


class GradientTrace:
    """Follows the outputs of linear maps to the ends of their attention blocks.

    The model runs without gradients; they are on only from a map to the end of its block.

    Attributes:
        ending: The blocks that were found to return the output of their map.
    """

    def __init__(self, followed: Mapping[str, tuple[nn.Module, nn.Module]]) -> None:
        """Follow linear maps.

        Args:
            followed: For each dotted path of an attention block, the block and the last map that runs in it.
                Blocks may lie in each other.
        """
        self._followed = followed
        self._projected: dict[nn.Module, torch.Tensor] = {}
        self._norms: list[tuple[torch.Tensor, torch.Tensor]] = []  # input and output of normalizations
        self.ending: set[str] = set()

    def register(self) -> Iterator[RemovableHandle]:
        """Hook the maps, the normalizations of their blocks, and the blocks."""
        for linear in dict.fromkeys(linear for _, linear in self._followed.values()):
            yield linear.register_forward_hook(self._start)
        modules = dict.fromkeys(module for block, _ in self._followed.values() for module in block.modules())
        for module in modules:
            if "norm" in type(module).__name__.lower():
                yield module.register_forward_hook(self._keep_norm)
        for followed in dict.fromkeys(block for block, _ in self._followed.values()):
            names = [name for name, (block, _) in self._followed.items() if block is followed]
            # Before hooks of others, whose changes are not the block's.
            yield followed.register_forward_hook(functools.partial(self._end, names), prepend=True)

    def _start(self, module: nn.Module, _args: object, output: torch.Tensor) -> torch.Tensor:
        torch.set_grad_enabled(True)  # until the outermost block ends: no other gradient is needed
        self._projected[module] = output.detach().requires_grad_()
        return self._projected[module].clone()  # the block may change it in place

    def _keep_norm(self, _module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._projected and args and isinstance(output, torch.Tensor):
            self._norms.append((args[0], output))

    def _end(self, names: Sequence[str], _block: nn.Module, _args: object, output: Any) -> Any:
        projected = self._projected.get(self._followed[names[0]][1])
        if projected is not None and self._is_projected(output, projected):
            self.ending.update(names)
        if any(name.startswith(f"{other}.") for name in names for other in self._followed):
            return output
        self._projected, self._norms = {}, []
        torch.set_grad_enabled(False)
        return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, output)

    def _is_projected(self, output: Any, projected: torch.Tensor) -> bool:
        """Whether a block's output is its map's, as it is or after a residual and a normalization."""
        results = [x for x in pytree.tree_leaves(output) if isinstance(x, torch.Tensor)]
        return any(_is_identity(result, projected) for result in results) or any(
            _is_identity(before, projected) and any(_is_identity(result, after) for result in results)
            for before, after in self._norms
        )


def _is_identity(result: torch.Tensor, source: torch.Tensor) -> bool:
    """Whether `result` is `source` in its own shape, plus something that does not depend on it."""
    if result is source:
        return True
    if result.numel() != source.numel() or not result.requires_grad:
        return False
    # Every entry its own factor, without the random numbers that the caller may have seeded.
    direction = (torch.arange(source.numel(), device=source.device) * 0.618 % 1 + 0.5).to(source.dtype)
    (gradient,) = torch.autograd.grad(
        result, source, direction.reshape(result.shape), allow_unused=True, retain_graph=True
    )
    return gradient is not None and torch.equal(gradient.flatten(), direction)
