"""Probes to convergence: scikit-learn's LogisticRegression objective, in float64, for a block of heads.

The objective is 0.5 |w|^2 + C * sum_i softplus((1 - 2 y_i) (w x_i + b)); the intercept is not penalised.

Two methods take turns. Newton's method sums a Hessian, X' D X, for every step, which is where its time
goes. Preconditioned conjugate gradients run before it. Their preconditioner is the Hessian at zero,
X'X / 4 + ridge, which depends on no label: all subsets and label arrays share it, and float32 is precise
enough for it. Probes that they have not brought to convergence, and those with fewer than
`_MIN_SEQUENCES_PER_FEATURE` sequences per feature, are left to Newton's method.

The conjugate gradients are what makes this faster than scikit-learn's newton-cholesky. Measured with
`benchmarks/probes.py` on one thread, the ratio of CPU times is 2.6 with them and 1.5 with Newton's method
alone at 466 sequences of width 64, and 2.1 and 0.55 at 8,000 sequences of width 128.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

log = logging.getLogger(__name__)

# Newton's method: decrease that a step must bring, as a share of the predicted one; the smallest step; and
# what is added to a Hessian's diagonal before it is factored, as a share of the largest entry.
_ARMIJO, _SMALLEST_STEP, _JITTER = 1e-4, 2.0**-30, 1e-12
# The same for a Hessian that is summed in float32.
_JITTER32 = 1e-6
# From this many sequences per feature on, conjugate gradients are faster than Newton's method.
_MIN_SEQUENCES_PER_FEATURE = 2
# Conjugate gradient steps with one preconditioner, and the number of preconditioners. The first is the
# Hessian at zero, each later one the Hessian at the current coefficients.
_CG_STEPS, _CG_PRECONDITIONERS = 12, 4
# A conjugate gradient step is halved at most so often, while it raises the objective by more than this share.
_HALVINGS, _ROUNDING = 30, 1e-13


@dataclass
class _Design:
    """Scaled features of some heads, with a last feature 1 for the intercept.

    Coefficients are divided by the scales instead of features, which are only converted to float64.
    """

    x: Tensor  # float64 [heads, n, width]
    scale: Tensor  # float64 [heads, width + 1], powers of two, so that division is exact

    def margins(self, theta: Tensor) -> Tensor:
        """Logits [heads, m, n] of coefficients [heads, m, width + 1]."""
        theta = theta / self.scale[:, None]
        return torch.bmm(theta[..., :-1], self.x.transpose(1, 2)).add_(theta[..., -1:])

    def gradient(self, residual: Tensor) -> Tensor:
        """Sums of features times residuals [heads, m, n]: [heads, m, width + 1]."""
        sums = [torch.bmm(residual, self.x), residual.sum(dim=2, keepdim=True)]
        return torch.cat(sums, dim=2) / self.scale[:, None]

    def hessian(self, weights: Tensor) -> Tensor:
        """X' diag(weights) X: [heads, width + 1, width + 1], for weights [heads, n]."""
        return _weighted_gram(self.x, weights) / (self.scale[:, :, None] * self.scale[:, None])

    def select(self, *, rows: Tensor | None = None, heads: Tensor | None = None) -> _Design:
        x, scale = (self.x, self.scale) if heads is None else (self.x[heads], self.scale[heads])
        return _Design(x if rows is None else x[:, rows], scale)


def _weighted_gram(x: Tensor, weights: Tensor | None) -> Tensor:
    """X' diag(weights) X of features [heads, n, width] and a last feature 1, in float64; weights None: 1."""
    heads, n, width = x.shape
    weighted = x if weights is None else x * weights.to(x.dtype)[:, :, None]
    gram = x.new_empty(heads, width + 1, width + 1, dtype=torch.float64)
    gram[:, :-1, :-1] = torch.bmm(weighted.transpose(1, 2), x)
    gram[:, :-1, -1] = gram[:, -1, :-1] = weighted.sum(dim=1)
    gram[:, -1, -1] = n if weights is None else weights.sum(dim=1)
    return gram


class NewtonBlock:
    """A block of heads' features, and what the fits of all label arrays share: their scales and X'X.

    Args:
        x: float32 features [heads, n, width].
    """

    def __init__(self, x: Tensor) -> None:
        gram = _weighted_gram(x, None)
        # Features are scaled to about 1, so that one huge dimension does not spoil the precision of a step.
        # The penalty is scaled with them, so the minimum is the same.
        size = torch.diagonal(gram, dim1=1, dim2=2).div(x.shape[1]).sqrt()
        self.scale = torch.where(size > 0, size.clamp(1e-18, 1e18).log2().round().exp2(), 1.0)
        self.scale[:, -1] = 1.0
        self.single, self.design = x, _Design(x.double(), self.scale)
        self.gram = gram / (self.scale[:, :, None] * self.scale[:, None])
        self.ridge = self.scale.pow(-2)
        self.ridge[:, -1] = 0.0  # the intercept is not penalised

    def rough_hessian(self, weights: Tensor) -> Tensor:
        """`_Design.hessian`, summed in float32."""
        return _weighted_gram(self.single, weights) / (self.scale[:, :, None] * self.scale[:, None])

    def fit(
        self, y: Tensor, subsets: Sequence[Tensor], *, C: float, tol: float, max_iter: int
    ) -> tuple[Tensor, Tensor]:
        """The minimum of the objective on each subset of the sequences.

        Args:
            y: Labels [n], 0 or 1.
            subsets: Indices of the sequences that a probe is fitted on.
            C: Inverse strength of the penalty.
            tol: A head is done after a Newton step that was predicted to lower its objective by less than
                this fraction. That step squares the error, so the result is far closer.
            max_iter: Maximum number of Newton steps, for probes that conjugate gradients leave.

        Returns:
            float64 weights [subsets, heads, width] and intercepts [subsets, heads].
        """
        heads, n, width = self.single.shape
        sign = (1 - 2 * y.long()).double()  # avoids cancellation in softplus(sign * z)
        theta = self.scale.new_zeros(len(subsets), heads, width + 1)
        unfinished = torch.ones(len(subsets), heads, dtype=torch.bool, device=theta.device)
        if n >= _MIN_SEQUENCES_PER_FEATURE * width:
            theta, unfinished = _ConjugateGradients(self, sign, subsets, C).minimise(tol)
        # The minimum of the largest subset is near those of the others, which start from it and take half
        # the steps.
        order = sorted(range(len(subsets)), key=lambda i: -len(subsets[i]))
        for index in order:
            some, rows = unfinished[index], subsets[index]
            if not bool(some.any()):
                continue
            start = theta[order[0] if bool(unfinished[index].all()) else index][some]
            design = self.design.select(rows=rows, heads=None if bool(some.all()) else some)
            problem = _Problem(design, self.ridge[some], sign[rows], C)
            theta[index, some] = _minimise(problem, start, tol, max_iter)
        theta = theta / self.scale
        return theta[..., :-1], theta[..., -1]


class _ConjugateGradients:
    """Nonlinear conjugate gradients (Polak-Ribiere) of all heads and subsets together.

    Subsets are masks over all sequences, so that one product reads the features once for all subsets.
    """

    def __init__(self, block: NewtonBlock, sign: Tensor, subsets: Sequence[Tensor], C: float) -> None:
        self.block, self.design, self.ridge, self.sign = block, block.design, block.ridge[:, None], sign
        self.C = C
        self.weight = sign.new_zeros(len(subsets), len(sign))  # [subsets, n]
        for line, rows in zip(self.weight, subsets, strict=True):
            line[rows] = C
        self.largest = max(range(len(subsets)), key=lambda i: len(subsets[i]))

    def minimise(self, tol: float) -> tuple[Tensor, Tensor]:
        """(theta [subsets, heads, width + 1], mask of those that have not converged)."""
        theta = self.sign.new_zeros(len(self.ridge), len(self.weight), self.ridge.shape[-1])
        z = self.sign.new_zeros(len(self.ridge), *self.weight.shape)
        hessian = self.C / 4 * self.block.gram
        done = torch.zeros(theta.shape[:2], dtype=torch.bool, device=theta.device)
        for number in range(_CG_PRECONDITIONERS):
            if number:
                p = torch.sigmoid(z[:, self.largest])
                hessian = self.block.rough_hessian(self.weight[self.largest] * p * (1 - p))
            theta, z, done = self._descend(theta, z, _factor(hessian, self.ridge[:, 0], _JITTER32), tol)
            if bool(done.all()):
                break
        return theta.transpose(0, 1).contiguous(), ~done.T

    def _descend(self, theta: Tensor, z: Tensor, factor: Tensor, tol: float) -> tuple[Tensor, Tensor, Tensor]:
        """(theta, its margins, mask of the converged) after the steps with one preconditioner."""
        direction, gradient = torch.zeros_like(theta), torch.zeros_like(theta)
        size = torch.ones_like(theta[..., 0])
        value = self._value(theta, z)
        for _ in range(_CG_STEPS):
            p = torch.sigmoid(self.sign * z)
            slope = self.design.gradient(self.weight * self.sign * p) + self.ridge * theta
            steepest = torch.cholesky_solve(slope.transpose(1, 2), factor).transpose(1, 2)
            gain = (slope * steepest).sum(dim=2)
            # Newton's method squares the error in its last step. This method does not: square the tolerance.
            done = 0.5 * gain <= tol**2 * value
            if bool(done.all()):
                break
            beta = (gain - (gradient * steepest).sum(dim=2)).clamp(min=0) / size
            direction = beta[:, :, None] * direction - steepest
            gradient, size = slope, gain.clamp(min=torch.finfo(gain.dtype).tiny)  # 0 where converged
            dz = self.design.margins(direction)
            step = self._step(theta, z, direction, dz, p, done)
            theta, z, value = self._move(theta, z, direction, dz, step, value)
        return theta, z, done

    def _value(self, theta: Tensor, z: Tensor) -> Tensor:
        loss = (self.weight * functional.softplus(self.sign * z)).sum(dim=2)
        return 0.5 * (self.ridge * theta * theta).sum(dim=2) + loss

    def _step(
        self, theta: Tensor, z: Tensor, direction: Tensor, dz: Tensor, p: Tensor, done: Tensor
    ) -> Tensor:
        """Step size [heads, subsets]: two Newton steps along the direction, 0 where converged."""
        curved, linear = ((self.ridge * direction * other).sum(dim=2) for other in (direction, theta))
        signed, squared = self.weight * self.sign * dz, self.weight * dz * dz
        step = torch.zeros_like(curved)
        for number in range(2):
            if number:
                p = torch.sigmoid(self.sign * (z + step[:, :, None] * dz))
            slope = linear + step * curved + (signed * p).sum(dim=2)
            step = step - slope / (curved + (squared * p * (1 - p)).sum(dim=2))
        return torch.where(done, 0.0, step)

    def _move(
        self, theta: Tensor, z: Tensor, direction: Tensor, dz: Tensor, step: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(theta, its margins, its value); a step that does not lower the objective is halved."""
        for _ in range(_HALVINGS):
            moved, z_moved = theta + step[:, :, None] * direction, z + step[:, :, None] * dz
            after = self._value(moved, z_moved)
            worse = ~(after <= value * (1 + _ROUNDING))
            if not bool(worse.any()):
                return moved, z_moved, after
            step = torch.where(worse, step / 2, step)
        # No step along this direction helps. Another preconditioner, or Newton's method, continues from here.
        return (
            torch.where(worse[:, :, None], theta, moved),
            torch.where(worse[:, :, None], z, z_moved),
            torch.where(worse, value, after),
        )


def _minimise(problem: _Problem, start: Tensor, tol: float, max_iter: int) -> Tensor:
    """The minimum of every head's objective. A head that has converged takes no part in later steps."""
    theta = start.clone()
    active = torch.arange(len(theta), device=theta.device)
    current, z = start, problem.margins(start)
    for _ in range(max_iter):
        current, z, done = problem.step(current, z, tol)
        theta[active] = current
        if bool(done.any()):
            remaining = ~done
            if not bool(remaining.any()):
                return theta
            active, current, z = active[remaining], current[remaining], z[remaining]
            problem = problem.of_heads(remaining)
    log.warning("newton: %d probes did not converge in max_iter=%d steps", len(active), max_iter)
    return theta


@dataclass
class _Problem:
    """The objective of some heads on some sequences, its derivatives, and one guarded Newton step."""

    design: _Design
    ridge: Tensor  # [heads, width + 1], the penalty of each scaled feature, 0 for the intercept
    sign: Tensor  # [n], -1 for label 1, +1 for label 0: avoids cancellation in softplus(sign * z)
    C: float  # weight of the loss

    def of_heads(self, heads: Tensor) -> _Problem:
        return _Problem(self.design.select(heads=heads), self.ridge[heads], self.sign, self.C)

    def margins(self, theta: Tensor) -> Tensor:
        return self.design.margins(theta[:, None])[:, 0]

    def value(self, theta: Tensor, z: Tensor) -> Tensor:
        loss = functional.softplus(self.sign * z).sum(dim=1)
        return 0.5 * (self.ridge * theta * theta).sum(dim=1) + self.C * loss

    def step(self, theta: Tensor, z: Tensor, tol: float) -> tuple[Tensor, Tensor, Tensor]:
        """(new theta, its margins, mask of the converged heads) after one guarded Newton step."""
        p = torch.sigmoid(self.sign * z)
        gradient = self.design.gradient((self.C * self.sign * p)[:, None])[:, 0] + self.ridge * theta
        hessian = self.design.hessian(self.C * p * (1 - p))
        factor = _factor(hessian, self.ridge, _JITTER)
        direction = -torch.cholesky_solve(gradient[:, :, None], factor)[:, :, 0]
        slope = (gradient * direction).sum(dim=1)
        before, dz = self.value(theta, z), self.margins(direction)
        size = torch.ones_like(slope)
        while True:  # halve each head's step until its objective falls enough
            moved, z_moved = theta + size[:, None] * direction, z + size[:, None] * dz
            falls = self.value(moved, z_moved) <= before + _ARMIJO * size * slope
            if bool((falls | (size < _SMALLEST_STEP)).all()):
                break
            size = torch.where(falls, size, size / 2)
        # Where no step lowers the objective, what is left to gain is below rounding: the head has converged.
        done = ~falls | (-0.5 * slope <= tol * before)
        return torch.where(falls[:, None], moved, theta), torch.where(falls[:, None], z_moved, z), done


def _factor(hessian: Tensor, ridge: Tensor, share: float) -> Tensor:
    """Cholesky factor of Hessian + penalty, with as much added to the diagonal as collinear data needs."""
    diagonal = torch.diagonal(hessian, dim1=1, dim2=2)
    jitter = share * diagonal.amax(dim=1, keepdim=True) + torch.finfo(hessian.dtype).tiny
    diagonal += ridge
    for _ in range(8):  # the eighth jitter is above the largest entry: enough for anything but NaN
        diagonal += jitter
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if not bool(failed.any()):
            break
        jitter = torch.where(failed[:, None] > 0, 100 * jitter, 0.0)
    return factor
