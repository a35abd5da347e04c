"""Logistic probes of many heads, fitted together.

Two solvers, each in two forms. `fit_newton` and `fit_adamw` take all heads' features as they were
captured and give one probe per head. Underneath, `newton_block` and `adamw_block` take a block of
heads and several subsets of the sequences (the folds, and all of them), so that what the subsets
share is done once. A head's probe never depends on the heads it was fitted with.

Products of a head's features with one vector are written [1, width] @ [width, n]: the batched
form [n, width] @ [width, 1] misses BLAS's fast path and is 4 to 10 times slower.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from truthgate_eval.errors import ProbeError

log = logging.getLogger(__name__)

Features = NDArray[Any] | Tensor
Progress = Callable[[int], None]
Device = str | torch.device
Subsets = Sequence[Tensor]
Probes = tuple[Tensor, Tensor]

# Bytes of one block's float64 features: few enough to stay in a processor's cache (one product
# over all heads is bound by memory), many enough to keep a GPU busy.
_BLOCK_BYTES = {"cpu": 8 * 2**20, "cuda": 2**30}
_ARMIJO, _SMALLEST_STEP, _JITTER = 1e-4, 2.0**-30, 1e-12


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
    not penalised. Newton steps with backtracking, in float64.

    Args:
        x: [n, layers, heads, width] or [n, heads, width] features.
        y: [n] labels, 0 or 1.
        C: Inverse strength of the penalty.
        tol: A head is done after a step that promised to lower its objective by less than this
            fraction (Newton's last step squares the error, so the end is far closer).
        max_iter: Most Newton steps.
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
    for block in head_blocks(x, device):
        if not bool(torch.isfinite(block).all()):
            raise ProbeError("the features have NaN or infinite values")
        weight, bias = solve(block, truth, [everything], **options)
        parts.append((weight[0], bias[0]))
        if progress is not None:
            progress(len(block))
    weights, intercepts = zip(*parts, strict=True)
    return torch.cat(weights), torch.cat(intercepts)


def device_of(x: Features, device: Device | None) -> torch.device:
    """The device asked for, or else the one that the features are on."""
    if device is not None:
        return torch.device(device)
    return x.device if isinstance(x, Tensor) else torch.device("cpu")


def head_blocks(x: Features, device: torch.device) -> Iterator[Tensor]:
    """Contiguous float32 [heads, n, width] blocks of the heads of `x` [n, ..., width], in order.

    Only one block is read at a time, so `x` may be a memory map larger than memory.
    """
    n, width = x.shape[0], x.shape[-1]
    flat = x.reshape(n, -1, width)
    size = max(1, _BLOCK_BYTES["cpu" if device.type == "cpu" else "cuda"] // (8 * n * width))
    for start in range(0, flat.shape[1], size):
        part = flat[:, start : start + size]
        if not isinstance(part, Tensor):
            part = torch.from_numpy(np.array(part, dtype=np.float32))
        yield part.to(device, torch.float32).transpose(0, 1).contiguous()


def newton_block(x: Tensor, y: Tensor, subsets: Subsets, *, C: float, tol: float, max_iter: int) -> Probes:
    """`fit_newton` of a block [heads, n, width], once for each subset (indices of sequences to fit on).

    Returns float64 weights [subsets, heads, width] and intercepts [subsets, heads].
    """
    heads, n, width = x.shape
    # Features are scaled to about 1, so that one huge dimension does not spoil the step's
    # arithmetic. The penalty is scaled with them: the minimum is the same.
    scale = x.double().square().mean(dim=1).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    features = x.new_ones(heads, n, width + 1, dtype=torch.float64)  # the ones carry the intercept
    torch.div(x, scale[:, None, :], out=features[:, :, :-1])
    ridge = functional.pad(scale.pow(-2), (0, 1))
    sign = (1 - 2 * y.long()).double()
    theta = features.new_zeros(len(subsets), heads, width + 1)
    start = theta[0]
    # The largest subset's minimum is near the others': from there they take half the steps.
    order = sorted(range(len(subsets)), key=lambda i: -len(subsets[i]))
    for index in order:
        problem = _Problem(features[:, subsets[index]], ridge, sign[subsets[index]], C)
        theta[index] = _minimise(problem, start, tol, max_iter)
        start = theta[order[0]]
    return theta[..., :-1] / scale, theta[..., -1]


def _minimise(problem: _Problem, start: Tensor, tol: float, max_iter: int) -> Tensor:
    """The minimum of every head's objective; a head leaves the work when it is done."""
    theta = start.clone()
    active = torch.arange(len(theta), device=theta.device)
    current, z = start, problem.margins(start)
    for _ in range(max_iter):
        current, z, done = problem.step(current, z, tol)
        theta[active] = current
        if bool(done.any()):
            going = ~done
            if not bool(going.any()):
                return theta
            active, current, z = active[going], current[going], z[going]
            problem = problem.of_heads(going)
    log.warning("newton: %d probes did not converge in max_iter=%d steps", len(active), max_iter)
    return theta


@dataclass
class _Problem:
    """The objective of some heads on some sequences, its derivatives, and one guarded Newton step."""

    features: Tensor  # [heads, n, width + 1], the last feature 1
    ridge: Tensor  # [heads, width + 1], the penalty of each scaled feature, 0 for the intercept
    sign: Tensor  # [n], -1 for label 1, +1 for label 0: nothing cancels in softplus(sign * z)
    C: float  # weight of the loss

    def of_heads(self, heads: Tensor) -> _Problem:
        return _Problem(self.features[heads], self.ridge[heads], self.sign, self.C)

    def margins(self, theta: Tensor) -> Tensor:
        return torch.bmm(theta[:, None, :], self.features.transpose(1, 2))[:, 0]

    def value(self, theta: Tensor, z: Tensor) -> Tensor:
        loss = functional.softplus(self.sign * z).sum(dim=1)
        return 0.5 * (self.ridge * theta * theta).sum(dim=1) + self.C * loss

    def step(self, theta: Tensor, z: Tensor, tol: float) -> tuple[Tensor, Tensor, Tensor]:
        """(new theta, its margins, which heads are done)."""
        p = torch.sigmoid(self.sign * z)
        gradient = torch.bmm((self.C * self.sign * p)[:, None, :], self.features)[:, 0]
        gradient += self.ridge * theta
        weighted = self.features * (self.C * p * (1 - p))[:, :, None]
        hessian = torch.bmm(weighted.transpose(1, 2), self.features)
        direction = -torch.cholesky_solve(gradient[:, :, None], self._factor(hessian))[:, :, 0]
        slope = (gradient * direction).sum(dim=1)
        before, dz = self.value(theta, z), self.margins(direction)
        size = torch.ones_like(slope)
        while True:  # halve each head's step until its objective falls enough
            moved, z_moved = theta + size[:, None] * direction, z + size[:, None] * dz
            falls = self.value(moved, z_moved) <= before + _ARMIJO * size * slope
            if bool((falls | (size < _SMALLEST_STEP)).all()):
                break
            size = torch.where(falls, size, size / 2)
        # Where no step helps, rounding hides what is left to gain: that head is at its end.
        done = ~falls | (-0.5 * slope <= tol * before)
        return torch.where(falls[:, None], moved, theta), torch.where(falls[:, None], z_moved, z), done

    def _factor(self, hessian: Tensor) -> Tensor:
        """Cholesky factor of data + penalty; saturated or collinear data gets the jitter it needs."""
        diagonal = torch.diagonal(hessian, dim1=1, dim2=2)
        jitter = _JITTER * diagonal.amax(dim=1, keepdim=True) + torch.finfo(hessian.dtype).tiny
        diagonal += self.ridge
        for _ in range(8):  # the eighth jitter is above the largest entry: enough for anything but NaN
            diagonal += jitter
            factor, failed = torch.linalg.cholesky_ex(hessian)
            if not bool(failed.any()):
                break
            jitter = torch.where(failed[:, None] > 0, 100 * jitter, 0.0)
        return factor


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
