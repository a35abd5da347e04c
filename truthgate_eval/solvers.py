"""Logistic probes of many heads, fitted together.

Both solvers take the features of some heads, [heads, n, width], and one label vector, and
give weights [heads, width] and intercepts [heads]. A head's probe does not depend on the
other heads that it was fitted with.
"""

from __future__ import annotations

import torch
from torch.nn import functional

_ARMIJO = 1e-4
_SMALLEST_STEP = 2.0**-30


def fit_newton(
    x: torch.Tensor, y: torch.Tensor, *, c: float = 1.0, tol: float = 1e-6, max_iter: int = 100
) -> tuple[torch.Tensor, torch.Tensor]:
    """Minimise scikit-learn's LogisticRegression objective for every head, to convergence.

    The objective is 0.5 |w|^2 + c * sum_i softplus((1 - 2 y_i) (x_i w + b)); the intercept is
    not penalised. Newton steps with backtracking, in float64.

    Args:
        x: [heads, n, width] features.
        y: [n] labels, 0 or 1.
        c: Inverse strength of the penalty.
        tol: A head is done when its largest gradient entry is below `tol` times the number of
            sequences times the features' scale.
        max_iter: Most Newton steps.
    """
    heads, n, width = x.shape
    # A column of ones carries the intercept. Features are scaled to about 1, so that one huge
    # dimension does not spoil the step's arithmetic; the penalty is scaled with them, and the
    # minimum is the same.
    scale = x.double().pow(2).mean(dim=1).sqrt().clamp_min(1e-30)
    features = torch.cat(
        [x.double() / scale[:, None, :], x.new_ones(heads, n, 1, dtype=torch.float64)], dim=2
    )
    ridge = torch.cat([scale.pow(-2), scale.new_zeros(heads, 1)], dim=1)
    # A feature that is 0 everywhere has no curvature but its penalty; any positive one will do.
    ridge[:, :-1] = torch.where(scale <= 1e-30, torch.ones_like(scale), ridge[:, :-1])
    sign = (1 - 2 * y).double()
    theta = features.new_zeros(heads, width + 1)
    active = torch.arange(heads, device=x.device)
    for _ in range(max_iter):
        if not len(active):
            break
        problem = _Problem(features[active], ridge[active], sign, c)
        theta[active], done = problem.step(theta[active], tol)
        active = active[~done]
    return (theta[:, :-1] / scale).float(), theta[:, -1].float()


class _Problem:
    """The objective of some heads, its derivatives, and one guarded Newton step."""

    def __init__(self, features: torch.Tensor, ridge: torch.Tensor, sign: torch.Tensor, c: float) -> None:
        self.features, self.ridge, self.sign, self.c = features, ridge, sign, c

    def margins(self, theta: torch.Tensor) -> torch.Tensor:
        return torch.bmm(self.features, theta[:, :, None])[:, :, 0]

    def value(self, theta: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        loss = functional.softplus(self.sign * z).sum(dim=1)
        return 0.5 * (self.ridge * theta * theta).sum(dim=1) + self.c * loss

    def step(self, theta: torch.Tensor, tol: float) -> tuple[torch.Tensor, torch.Tensor]:
        """(new theta, which heads are done)."""
        z = self.margins(theta)
        p = torch.sigmoid(self.sign * z)
        gradient = torch.bmm((self.c * self.sign * p)[:, None, :], self.features)[:, 0]
        gradient += self.ridge * theta
        done = gradient.abs().amax(dim=1) <= tol * self.c
        weighted = self.features * (self.c * p * (1 - p))[:, :, None]
        hessian = torch.bmm(weighted.transpose(1, 2), self.features)
        diagonal = torch.diagonal(hessian, dim1=1, dim2=2)
        # Saturated probabilities leave the intercept without curvature: keep the matrix positive.
        diagonal += self.ridge + 1e-10 * diagonal.amax(dim=1, keepdim=True) + 1e-12
        direction = -torch.cholesky_solve(gradient[:, :, None], torch.linalg.cholesky(hessian))[:, :, 0]
        moved, improved = self._backtrack(theta, z, gradient, direction)
        return torch.where(done[:, None], theta, moved), done | ~improved

    def _backtrack(
        self, theta: torch.Tensor, z: torch.Tensor, gradient: torch.Tensor, direction: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Halve each head's step until its objective falls enough; a head that cannot move is at its end."""
        slope = (gradient * direction).sum(dim=1)
        before, dz = self.value(theta, z), self.margins(direction)
        size = torch.ones_like(slope)
        while True:
            moved = theta + size[:, None] * direction
            falls = self.value(moved, z + size[:, None] * dz) <= before + _ARMIJO * size * slope
            if bool((falls | (size < _SMALLEST_STEP)).all()):
                return torch.where(falls[:, None], moved, theta), falls
            size = torch.where(falls, size, size / 2)


def fit_adamw(
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    lr: float = 1e-2,
    weight_decay: float = 1e-3,
    epochs: int = 200,
    batch_size: int = 512,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The released code's procedure (METHOD.md, last section), for all heads at once.

    torch's AdamW on the mean binary cross-entropy of each batch, batches in fixed order, zero
    initial weights, float32. AdamW works on every number by itself, so one parameter for all
    heads takes the same steps as one parameter a head.

    Args:
        x: [heads, n, width] features.
        y: [n] labels, 0 or 1.
        lr: Learning rate.
        weight_decay: Decoupled decay, of weights and intercepts alike, as AdamW does.
        epochs: Passes over the data.
        batch_size: Sequences to a batch.
    """
    heads, n, width = x.shape
    batches = [
        (x[:, i : i + batch_size].float(), y[i : i + batch_size].float()) for i in range(0, n, batch_size)
    ]
    weight = torch.zeros(heads, width, device=x.device, requires_grad=True)
    bias = torch.zeros(heads, device=x.device, requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=lr, weight_decay=weight_decay, foreach=True)
    with torch.no_grad():
        for _ in range(epochs):
            for features, labels in batches:
                z = torch.bmm(features, weight[:, :, None])[:, :, 0] + bias[:, None]
                residual = (torch.sigmoid(z) - labels) / len(labels)
                weight.grad = torch.bmm(residual[:, None, :], features)[:, 0]
                bias.grad = residual.sum(dim=1)
                optimizer.step()
    return weight.detach(), bias.detach()
