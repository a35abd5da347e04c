"""Probes to convergence: scikit-learn's LogisticRegression objective, in float64, for a block of heads.

Newton's method spends its time on a Hessian for each step. So conjugate gradients go first, preconditioned
by the Hessian at zero, X'X / 4 + ridge: it depends on no label, so that all subsets and label sets share
it, and float32 is enough for it. What they leave undone, and what has fewer sequences than features, is
left to Newton's method.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

log = logging.getLogger(__name__)

_ARMIJO, _SMALLEST_STEP, _JITTER = 1e-4, 2.0**-30, 1e-12
# Sequences per feature from which conjugate gradients are faster.
_MANY = 2
# Their steps with one preconditioner, and how many of those: the later ones are Hessians on the way.
_STEPS, _PRECONDITIONERS = 12, 4
# Their step is taken back where the objective rises by more than rounding, this share of it.
_HALVINGS, _ROUNDING = 30, 1e-13
# Of the largest diagonal entry: what makes a Hessian that is summed in float32 safe to factor.
_JITTER32 = 1e-6


@dataclass
class _Design:
    """Some heads' features, each divided by its scale, and a last feature 1 for the intercept.

    Coefficients are divided instead of features: nothing but the conversion to float64 touches those.
    """

    x: Tensor  # float64 [heads, n, width]
    scale: Tensor  # float64 [heads, width + 1], powers of two: dividing rounds nothing

    def margins(self, theta: Tensor) -> Tensor:
        """[heads, m, n] of coefficients [heads, m, width + 1]."""
        theta = theta / self.scale[:, None]
        return torch.bmm(theta[..., :-1], self.x.transpose(1, 2)).add_(theta[..., -1:])

    def pull(self, residual: Tensor) -> Tensor:
        """[heads, m, width + 1], the sums of features times residuals [heads, m, n]."""
        sums = [torch.bmm(residual, self.x), residual.sum(dim=2, keepdim=True)]
        return torch.cat(sums, dim=2) / self.scale[:, None]

    def hessian(self, weights: Tensor) -> Tensor:
        """[heads, width + 1, width + 1], the sum of features times features times weights [heads, n]."""
        return _weighted_gram(self.x, weights) / (self.scale[:, :, None] * self.scale[:, None])

    def part(self, *, rows: Tensor | None = None, heads: Tensor | None = None) -> _Design:
        x, scale = (self.x, self.scale) if heads is None else (self.x[heads], self.scale[heads])
        return _Design(x if rows is None else x[:, rows], scale)


def _weighted_gram(x: Tensor, weights: Tensor | None) -> Tensor:
    """X' diag(weights) X of features [heads, n, width] and a last feature 1, in float64."""
    heads, n, width = x.shape
    weighted = x if weights is None else x * weights.to(x.dtype)[:, :, None]
    gram = x.new_empty(heads, width + 1, width + 1, dtype=torch.float64)
    gram[:, :-1, :-1] = torch.bmm(weighted.transpose(1, 2), x)
    gram[:, :-1, -1] = gram[:, -1, :-1] = weighted.sum(dim=1)
    gram[:, -1, -1] = n if weights is None else weights.sum(dim=1)
    return gram


class NewtonBlock:
    """A block of heads' features, and what any labels of them share."""

    def __init__(self, x: Tensor) -> None:
        """Convert float32 features [heads, n, width], and sum X'X."""
        gram = _weighted_gram(x, None)
        # Features are scaled to about 1, so that one huge dimension does not spoil the step's
        # arithmetic. The penalty is scaled with them: the minimum is the same.
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
        """The minimum for labels [n] on each subset (indices of sequences to fit on).

        Returns float64 weights [subsets, heads, width] and intercepts [subsets, heads].
        """
        heads, n, width = self.single.shape
        sign = (1 - 2 * y.long()).double()  # nothing cancels in softplus(sign * z)
        theta = self.scale.new_zeros(len(subsets), heads, width + 1)
        undone = torch.ones(len(subsets), heads, dtype=torch.bool, device=theta.device)
        if n >= _MANY * width:
            theta, undone = _ConjugateGradients(self, sign, subsets, C).minimise(tol)
        # The largest subset's minimum is near the others': from there they take half the steps.
        order = sorted(range(len(subsets)), key=lambda i: -len(subsets[i]))
        for index in order:
            some, rows = undone[index], subsets[index]
            if not bool(some.any()):
                continue
            start = theta[order[0] if bool(undone[index].all()) else index][some]
            design = self.design.part(rows=rows, heads=None if bool(some.all()) else some)
            problem = _Problem(design, self.ridge[some], sign[rows], C)
            theta[index, some] = _minimise(problem, start, tol, max_iter)
        theta = theta / self.scale
        return theta[..., :-1], theta[..., -1]


class _ConjugateGradients:
    """Nonlinear conjugate gradients (Polak-Ribiere) of all heads and subsets together.

    Subsets are masks over all sequences: one product serves all of them, and reads the features once.
    """

    def __init__(self, block: NewtonBlock, sign: Tensor, subsets: Sequence[Tensor], C: float) -> None:
        self.block, self.design, self.ridge, self.sign = block, block.design, block.ridge[:, None], sign
        self.C = C
        self.weight = sign.new_zeros(len(subsets), len(sign))  # [subsets, n]
        for line, rows in zip(self.weight, subsets, strict=True):
            line[rows] = C
        self.largest = max(range(len(subsets)), key=lambda i: len(subsets[i]))

    def minimise(self, tol: float) -> tuple[Tensor, Tensor]:
        """(theta [subsets, heads, width + 1], which of them are not at their minimum)."""
        theta = self.sign.new_zeros(len(self.ridge), len(self.weight), self.ridge.shape[-1])
        z = self.sign.new_zeros(len(self.ridge), *self.weight.shape)
        hessian = self.C / 4 * self.block.gram
        done = torch.zeros(theta.shape[:2], dtype=torch.bool, device=theta.device)
        for number in range(_PRECONDITIONERS):
            if number:
                p = torch.sigmoid(z[:, self.largest])
                hessian = self.block.rough_hessian(self.weight[self.largest] * p * (1 - p))
            theta, z, done = self._descend(theta, z, _factor(hessian, self.ridge[:, 0], _JITTER32), tol)
            if bool(done.all()):
                break
        return theta.transpose(0, 1).contiguous(), ~done.T

    def _descend(self, theta: Tensor, z: Tensor, factor: Tensor, tol: float) -> tuple[Tensor, Tensor, Tensor]:
        """(theta, its margins, which are done) after the steps with one preconditioner."""
        direction, gradient = torch.zeros_like(theta), torch.zeros_like(theta)
        size = torch.ones_like(theta[..., 0])
        value = self._value(theta, z)
        for _ in range(_STEPS):
            p = torch.sigmoid(self.sign * z)
            slope = self.design.pull(self.weight * self.sign * p) + self.ridge * theta
            steepest = torch.cholesky_solve(slope.transpose(1, 2), factor).transpose(1, 2)
            gain = (slope * steepest).sum(dim=2)
            # Newton's last step squares what is left, and so its tolerance; here the tolerance is squared.
            done = 0.5 * gain <= tol**2 * value
            if bool(done.all()):
                break
            beta = (gain - (gradient * steepest).sum(dim=2)).clamp(min=0) / size
            direction = beta[:, :, None] * direction - steepest
            gradient, size = slope, gain.clamp(min=torch.finfo(gain.dtype).tiny)  # 0 where all is done
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
        """How far to go, [heads, subsets]: two Newton steps along the direction, 0 where it is done."""
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
        # A step of this size leads nowhere: another preconditioner, or Newton's method, goes on from here.
        return (
            torch.where(worse[:, :, None], theta, moved),
            torch.where(worse[:, :, None], z, z_moved),
            torch.where(worse, value, after),
        )


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

    design: _Design
    ridge: Tensor  # [heads, width + 1], the penalty of each scaled feature, 0 for the intercept
    sign: Tensor  # [n], -1 for label 1, +1 for label 0: nothing cancels in softplus(sign * z)
    C: float  # weight of the loss

    def of_heads(self, heads: Tensor) -> _Problem:
        return _Problem(self.design.part(heads=heads), self.ridge[heads], self.sign, self.C)

    def margins(self, theta: Tensor) -> Tensor:
        return self.design.margins(theta[:, None])[:, 0]

    def value(self, theta: Tensor, z: Tensor) -> Tensor:
        loss = functional.softplus(self.sign * z).sum(dim=1)
        return 0.5 * (self.ridge * theta * theta).sum(dim=1) + self.C * loss

    def step(self, theta: Tensor, z: Tensor, tol: float) -> tuple[Tensor, Tensor, Tensor]:
        """(new theta, its margins, which heads are done)."""
        p = torch.sigmoid(self.sign * z)
        gradient = self.design.pull((self.C * self.sign * p)[:, None])[:, 0] + self.ridge * theta
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
        # Where no step helps, rounding hides what is left to gain: that head is at its end.
        done = ~falls | (-0.5 * slope <= tol * before)
        return torch.where(falls[:, None], moved, theta), torch.where(falls[:, None], z_moved, z), done


def _factor(hessian: Tensor, ridge: Tensor, share: float) -> Tensor:
    """Cholesky factor of data + penalty; saturated or collinear data gets the jitter it needs."""
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
