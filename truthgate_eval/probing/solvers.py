"""Logistic probes of many heads, fitted together.

Two solvers, each in two forms. `fit_newton` and `fit_adamw` take all heads' features as they were
captured and give one probe per head. Underneath, `newton_block` and `adamw_block` take a block of
heads and several subsets of the sequences (the folds, and all of them), so that what the subsets
share is done once. A head's probe never depends on the heads it was fitted with.

Products of a head's features with one vector are written [1, width] @ [width, n]: the batched
form [n, width] @ [width, 1] misses BLAS's fast path and is 4 to 10 times slower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from truthgate_eval.errors import ProbeError
from truthgate_eval.probing.activations import Features, head_blocks
from truthgate_eval.probing.newton import NewtonBlock

Progress = Callable[[int], None]
Device = str | torch.device
Subsets = Sequence[Tensor]
Probes = tuple[Tensor, Tensor]

# Bytes of one block's float64 features: few enough to stay in a processor's cache (one product
# over all heads is bound by memory), many enough to keep a GPU busy.
_BLOCK_BYTES = {"cpu": 8 * 2**20, "cuda": 2**30}


def fit_newton(
    x: Features,
    y: Any,
    *,
    C: float = 1.0,
    tol: float = 1e-8,
    max_iter: int = 100,
    device: Device | None = None,
    progress: Progress | None = None,
) -> Probes:
    """Minimise scikit-learn's LogisticRegression objective for every head, to convergence.

    The objective is 0.5 |w|^2 + C * sum_i softplus((1 - 2 y_i) (w x_i + b)); the intercept is
    not penalised. In float64; how, see `newton`.

    Args:
        x: [n, layers, heads, width] or [n, heads, width] features.
        y: [n] labels, 0 or 1.
        C: Inverse strength of the penalty.
        tol: A head is done after a Newton step that promised to lower its objective by less than this
            fraction (that step squares the error, so the end is far closer).
        max_iter: Most Newton steps, where conjugate gradients do not get there.
        device: Where to fit; the features' own device if not given.
        progress: Called with the number of heads done since the last call.

    Returns float64 weights [heads, width] and intercepts [heads]; layers and heads are flattened.
    """
    return _fit(newton_block, x, y, device, progress, C=C, tol=tol, max_iter=max_iter)


def fit_adamw(
    x: Features,
    y: Any,
    *,
    lr: float = 1e-2,
    weight_decay: float = 1e-3,
    epochs: int = 200,
    batch_size: int = 512,
    device: Device | None = None,
    progress: Progress | None = None,
) -> Probes:
    """The released code's procedure (METHOD.md, last section), for all heads at once.

    torch's AdamW on the mean binary cross-entropy of each batch, batches in fixed order, zero
    initial weights, float32, features as they are.

    Args:
        x: [n, layers, heads, width] or [n, heads, width] features.
        y: [n] labels, 0 or 1.
        lr: Learning rate.
        weight_decay: Decoupled decay, of weights and intercepts alike, as AdamW does.
        epochs: Passes over the data.
        batch_size: Sequences to a batch.
        device: Where to fit; the features' own device if not given.
        progress: Called with the number of heads done since the last call.

    Returns float32 weights [heads, width] and intercepts [heads]; layers and heads are flattened.
    """
    options = {"lr": lr, "weight_decay": weight_decay, "epochs": epochs, "batch_size": batch_size}
    return _fit(adamw_block, x, y, device, progress, **options)


def _fit(
    solve: Callable[..., Probes], x: Features, y: Any, device: Any, progress: Progress | None, **options: Any
) -> Probes:
    if x.ndim not in (3, 4) or len(x) != len(y):
        shape = tuple(x.shape)
        raise ProbeError(f"{len(y)} labels, features {shape}: expected [n, heads, width] or with layers")
    if not np.isin(np.asarray(y.cpu() if isinstance(y, Tensor) else y), (0, 1)).all():
        raise ProbeError("labels must be 0 or 1")
    device = device_of(x, device)
    truth, everything = torch.as_tensor(y, device=device), torch.arange(len(x), device=device)
    parts = []
    for _, block in head_blocks(x if x.ndim == 4 else x[:, None], device, block_bytes(device)):
        if not all_finite(block):
            raise ProbeError("the features have NaN or infinite values")
        weight, bias = solve(block, truth, [everything], **options)
        parts.append((weight[0], bias[0]))
        if progress is not None:
            progress(len(block))
    weights, intercepts = zip(*parts, strict=True)
    return torch.cat(weights), torch.cat(intercepts)


def all_finite(x: Tensor) -> bool:
    """Whether nothing is NaN or infinite. A sum shows that, unless large numbers overflow it."""
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())


def block_bytes(device: torch.device) -> int:
    """Bytes of one block's float64 features on a device."""
    return _BLOCK_BYTES["cpu" if device.type == "cpu" else "cuda"]


def device_of(x: Features, device: Device | None) -> torch.device:
    """The device asked for, or else the one that the features are on."""
    if device is not None:
        return torch.device(device)
    return x.device if isinstance(x, Tensor) else torch.device("cpu")


def newton_block(x: Tensor, y: Tensor, subsets: Subsets, *, C: float, tol: float, max_iter: int) -> Probes:
    """`fit_newton` of a block [heads, n, width], once for each subset (indices of sequences to fit on).

    Returns float64 weights [subsets, heads, width] and intercepts [subsets, heads].
    """
    return NewtonBlock(x).fit(y, subsets, C=C, tol=tol, max_iter=max_iter)


def adamw_block(
    x: Tensor, y: Tensor, subsets: Subsets, *, lr: float, weight_decay: float, epochs: int, batch_size: int
) -> Probes:
    """`fit_adamw` of a block [heads, n, width], once for each subset (indices, in the batches' order).

    AdamW works on every number by itself, so one parameter for all heads and subsets takes the
    same steps as one parameter each: neither enters the other's gradient. Subsets with equally
    many batches step together, over the rows that any of them has in its batch.

    Returns float32 weights [subsets, heads, width] and intercepts [subsets, heads].
    """
    heads, _, width = x.shape
    truth = y.float()
    theta = x.new_zeros(heads, len(subsets), width + 1)
    batches = [rows.split(batch_size) for rows in subsets]
    for count in sorted({len(parts) for parts in batches}):
        members = [i for i, parts in enumerate(batches) if len(parts) == count]
        steps = zip(*(batches[i] for i in members), strict=True)
        work = [(x[:, rows], truth[rows], share.to(x)) for rows, share in map(_window, steps)]
        optimizer = _AdamW(theta[:, members], lr, weight_decay)
        weight, bias = optimizer.parameter[..., :-1], optimizer.parameter[..., -1:]
        gradient = torch.empty_like(optimizer.parameter)
        for _ in range(epochs):
            for features, labels, share in work:
                z = torch.bmm(weight, features.transpose(1, 2)).add_(bias)
                residual = z.sigmoid_().sub_(labels).mul_(share)
                gradient[..., :-1] = torch.bmm(residual, features)
                gradient[..., -1] = residual.sum(dim=2)
                optimizer.step(gradient)
        theta[:, members] = optimizer.parameter
    return theta[..., :-1].transpose(0, 1), theta[..., -1].transpose(0, 1)


class _AdamW:
    """torch.optim.AdamW on one tensor; that module's first step imports a compiler, for seconds."""

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
    """(the rows that cover all these batches, [batches, rows] each row's share of its batch's mean)."""
    first = min(int(batch.min()) for batch in batches)
    last = max(int(batch.max()) for batch in batches)
    share = torch.zeros(len(batches), last - first + 1)
    for line, batch in zip(share, batches, strict=True):
        line[(batch - first).cpu()] = 1 / len(batch)
    return slice(first, last + 1), share
