"""Logistic probes of many heads, fitted together.

`NewtonBlock` (in `newton`) and `adamw_block` take a block of heads and several subsets of the sequences
(the training folds, and all sequences), so that what the subsets share is computed once. The probe of a
head does not depend on the heads that it is fitted with.

Products of a head's features with one vector are written [1, width] @ [width, n]: the batched form
[n, width] @ [width, 1] misses BLAS's fast path and is 4 to 10 times slower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from truthgate_eval.probing.activations import Features

Device = str | torch.device
Subsets = Sequence[Tensor]
Probes = tuple[Tensor, Tensor]

# Bytes of one block's float64 features: few enough to stay in a processor's cache (one product
# over all heads is bound by memory), many enough to keep a GPU busy.
_BLOCK_BYTES = {"cpu": 8 * 2**20, "cuda": 2**30}


def all_finite(x: Tensor) -> bool:
    """Whether nothing is NaN or infinite. The sum shows that, unless it overflows: then all are checked."""
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())


def block_bytes(device: torch.device) -> int:
    """Bytes of one block's float64 features on a device."""
    return _BLOCK_BYTES["cpu" if device.type == "cpu" else "cuda"]


def device_of(x: Features, device: Device | None) -> torch.device:
    """`device`, or by default the device that the features are on."""
    if device is not None:
        return torch.device(device)
    return x.device if isinstance(x, Tensor) else torch.device("cpu")


def adamw_block(
    x: Tensor, y: Tensor, subsets: Subsets, *, lr: float, weight_decay: float, epochs: int, batch_size: int
) -> Probes:
    """The solver of the released code (`docs/method.md#what-the-released-code-does`), for a block of heads.

    torch's AdamW on the mean binary cross-entropy of each batch: batches in fixed order, zero initial
    weights, float32, features as they are. The weight decay applies to weights and intercepts alike.

    AdamW updates every number by itself, so one parameter for all heads and subsets takes the same steps
    as one parameter each: neither enters the other's gradient. Subsets with equally many batches step
    together, over the rows that any of them has in its batch.

    Args:
        x: float32 features [heads, n, width].
        y: Labels [n], 0 or 1.
        subsets: Indices of the sequences that a probe is fitted on, in the order of the batches.
        lr: Learning rate.
        weight_decay: Decoupled weight decay.
        epochs: Passes over the data.
        batch_size: Sequences in a batch.

    Returns:
        float32 weights [subsets, heads, width] and intercepts [subsets, heads].
    """
    heads, _, width = x.shape
    truth = y.float()
    theta = x.new_zeros(heads, len(subsets), width + 1)
    batches = [rows.split(batch_size) for rows in subsets]
    for count in sorted({len(own) for own in batches}):
        together = [i for i, own in enumerate(batches) if len(own) == count]
        steps = zip(*(batches[i] for i in together), strict=True)
        work = [(x[:, rows], truth[rows], share.to(x)) for rows, share in map(_window, steps)]
        optimizer = _AdamW(theta[:, together], lr, weight_decay)
        weight, bias = optimizer.parameter[..., :-1], optimizer.parameter[..., -1:]
        gradient = torch.empty_like(optimizer.parameter)
        for _ in range(epochs):
            for features, labels, share in work:
                z = torch.bmm(weight, features.transpose(1, 2)).add_(bias)
                residual = z.sigmoid_().sub_(labels).mul_(share)
                gradient[..., :-1] = torch.bmm(residual, features)
                gradient[..., -1] = residual.sum(dim=2)
                optimizer.step(gradient)
        theta[:, together] = optimizer.parameter
    return theta[..., :-1].transpose(0, 1), theta[..., -1].transpose(0, 1)


class _AdamW:
    """torch.optim.AdamW on one tensor, without the compiler that the first step of torch's own imports."""

    def __init__(self, parameter: Tensor, lr: float, weight_decay: float) -> None:
        self.parameter, self.lr, self.decay = parameter, lr, 1 - lr * weight_decay
        self.mean, self.square, self.steps = torch.zeros_like(parameter), torch.zeros_like(parameter), 0

    def step(self, gradient: Tensor, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        self.steps += 1
        self.mean.lerp_(gradient, 1 - beta1)
        self.square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        size = self.square.sqrt().div_(math.sqrt(1 - beta2**self.steps)).add_(eps)
        self.parameter.mul_(self.decay).addcdiv_(self.mean, size, value=-self.lr / (1 - beta1**self.steps))


def _window(batches: Sequence[Tensor]) -> tuple[slice, Tensor]:
    """The rows that cover all these batches, and each row's weight in the mean of each batch.

    Returns:
        A slice of rows, and [batches, rows]: 1 / length of the batch, 0 for rows that it does not have.
    """
    first = min(int(batch.min()) for batch in batches)
    last = max(int(batch.max()) for batch in batches)
    share = torch.zeros(len(batches), last - first + 1)
    for line, batch in zip(share, batches, strict=True):
        line[(batch - first).cpu()] = 1 / len(batch)
    return slice(first, last + 1), share
