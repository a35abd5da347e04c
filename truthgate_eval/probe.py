"""How well each head tells truth from hallucination: all heads' probes, fitted and judged.

METHOD.md, "Truth scores", steps 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from truthgate_eval.errors import ProbeError
from truthgate_eval.solvers import fit_adamw, fit_newton
from truthgate_eval.splits import Fold, make_folds

Solver = Callable[..., tuple[torch.Tensor, torch.Tensor]]
SOLVERS: dict[str, Solver] = {"adamw": fit_adamw, "newton": fit_newton}
SOLVER_SETTINGS: dict[str, dict[str, float]] = {
    "adamw": {"lr": 1e-2, "weight_decay": 1e-3, "epochs": 200, "batch_size": 512},
    "newton": {"c": 1.0, "tol": 1e-6, "max_iter": 100},
}
# Bytes of float64 features that are worked on at once: more would leave the processor's cache.
_BLOCK_BYTES = 8 * 2**20


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """The probes of every head.

    Attributes:
        scores: [layers, heads] mean over folds of the validation accuracy: the truth scores.
        stderr: Standard error of `scores`, clustered by question.
        auroc: Mean over folds of the area under the ROC curve on validation data; NaN where no
            fold's validation data has both labels.
        train_accuracy: Mean over folds of the training accuracy.
        probe_weight: [layers, heads, width], fitted on all sequences.
        probe_bias: [layers, heads], fitted on all sequences.
        settings: How the probes were fitted.
    """

    scores: NDArray[np.float32]
    stderr: NDArray[np.float32]
    auroc: NDArray[np.float32]
    train_accuracy: NDArray[np.float32]
    probe_weight: NDArray[np.float32]
    probe_bias: NDArray[np.float32]
    settings: dict[str, Any]


def probe_heads(
    activations: NDArray[Any],
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    *,
    solver: str = "adamw",
    folds: int = 5,
    split: str = "question",
    seed: int = 42,
    device: str | torch.device = "cpu",
    progress: Callable[[int], None] | None = None,
    **options: float,
) -> ProbeResult:
    """Fit and judge one linear probe per head.

    Args:
        activations: [n, layers, heads, width]; may be a memory map, which is read block by block.
        labels: [n]; 1 truthful, 0 hallucinated.
        groups: [n]; the question that each sequence belongs to.
        solver: `adamw` (the paper's) or `newton` (scikit-learn's objective, to convergence).
        folds: 5 for the mean over five folds, 1 for one 4:1 split.
        split: `question` or `sequence`, see `make_folds`.
        seed: Chooses the folds.
        device: Where the probes are fitted.
        progress: Called with the number of heads that are done.
        **options: Settings of the solver, see `SOLVER_SETTINGS`.

    Raises:
        ProbeError: A setting does not exist, or the data cannot be probed.
    """
    _check(activations, labels, groups, solver, options)
    n, layers, heads, width = activations.shape
    splits = make_folds(groups, folds=folds, split=split, seed=seed)
    settings = {**SOLVER_SETTINGS[solver], **options}
    block = max(1, _BLOCK_BYTES // (8 * n * width))
    parts: list[_Block] = []
    flat = activations.reshape(n, layers * heads, width)
    y = torch.as_tensor(labels, device=device)
    for start in range(0, layers * heads, block):
        x = np.ascontiguousarray(flat[:, start : start + block].swapaxes(0, 1), dtype=np.float32)
        if not np.isfinite(x).all():
            layer, head = divmod(start + int(np.argwhere(~np.isfinite(x))[0, 0]), heads)
            raise ProbeError(f"layer {layer}, head {head} has NaN or infinite activations: probe in float32")
        parts.append(
            _probe_block(torch.from_numpy(x).to(device), y, groups, splits, SOLVERS[solver], settings)
        )
        if progress is not None:
            progress(len(x))
    names = ("scores", "stderr", "auroc", "train_accuracy", "probe_weight", "probe_bias")
    arrays: dict[str, NDArray[np.float32]] = {}
    for index, name in enumerate(names):
        array = np.concatenate([part[index] for part in parts]).astype(np.float32)
        arrays[name] = array.reshape(layers, heads, *array.shape[1:])
    record = {"solver": solver, **settings, "folds": folds, "split": split, "seed": seed}
    return ProbeResult(settings=record, **arrays)


_Block = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]


def _probe_block(
    x: torch.Tensor,
    y: torch.Tensor,
    groups: NDArray[np.int64],
    splits: list[Fold],
    fit: Solver,
    settings: dict[str, float],
) -> _Block:
    """(scores, stderr, auroc, train accuracy, weights, intercepts) of a block of heads [heads, n, width]."""
    truth = y.cpu().numpy()
    scores, train_scores, aurocs, right, judged = [], [], [], [], []
    for train, validation in splits:
        rows = torch.from_numpy(train).to(x.device)
        weight, bias = fit(x[:, rows], y[rows], **settings)
        logits = (torch.bmm(x, weight[:, :, None])[:, :, 0] + bias[:, None]).cpu().numpy()
        correct = (logits > 0) == (truth == 1)
        scores.append(correct[:, validation].mean(axis=1))
        train_scores.append(correct[:, train].mean(axis=1))
        aurocs.append(auroc(logits[:, validation], truth[validation]))
        right.append(correct[:, validation])
        judged.append(groups[validation])
    stderr = clustered_stderr(np.concatenate(right, axis=1), np.concatenate(judged))
    weight, bias = fit(x, y, **settings)
    both = np.array(aurocs)
    known = np.isfinite(both).sum(axis=0)
    mean_auroc = np.where(known > 0, np.nansum(both, axis=0) / np.maximum(known, 1), np.nan)
    return (
        np.mean(scores, axis=0),
        stderr,
        mean_auroc,
        np.mean(train_scores, axis=0),
        weight.cpu().numpy(),
        bias.cpu().numpy(),
    )


def auroc(logits: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Area under the ROC curve of each row of `logits` [heads, n]; ties count half.

    The Mann-Whitney statistic over ranks; NaN where `labels` has one class only.
    """
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if positives == 0 or negatives == 0:
        return np.full(len(logits), np.nan)
    ranks = rankdata(logits, axis=1)
    above = ranks[:, labels == 1].sum(axis=1) - positives * (positives + 1) / 2
    return above / (positives * negatives)


def clustered_stderr(correct: NDArray[Any], clusters: NDArray[np.int64]) -> NDArray[np.float64]:
    """Standard error of each row's mean of `correct` [heads, n], with sequences clustered.

    sqrt(sum over clusters of (sum of residuals)^2) / n, times sqrt(G / (G - 1)) for G clusters.
    """
    names, index = np.unique(clusters, return_inverse=True)
    residuals = correct - correct.mean(axis=1, keepdims=True)
    sums = np.zeros((len(correct), len(names)))
    np.add.at(sums.T, index, residuals.T)
    factor = np.sqrt(len(names) / max(len(names) - 1, 1))
    return factor * np.sqrt((sums**2).sum(axis=1)) / correct.shape[1]


def _check(
    activations: NDArray[Any], labels: Any, groups: Any, solver: str, options: dict[str, float]
) -> None:
    if solver not in SOLVERS:
        raise ProbeError(f"unknown solver {solver!r}: expected one of {', '.join(SOLVERS)}")
    if unknown := sorted(options.keys() - SOLVER_SETTINGS[solver].keys()):
        known = ", ".join(SOLVER_SETTINGS[solver])
        raise ProbeError(f"solver {solver} has no setting {', '.join(unknown)}: it has {known}")
    if activations.ndim != 4:
        raise ProbeError(f"activations have shape {activations.shape}, expected [n, layers, heads, width]")
    if not len(activations) == len(labels) == len(groups):
        raise ProbeError(
            f"{len(activations)} activations, {len(labels)} labels and {len(groups)} groups: "
            "expected one of each per sequence"
        )
    values = set(np.unique(labels).tolist())
    if values != {0, 1}:
        raise ProbeError(f"probing needs sequences of both labels, 0 and 1; the labels are {sorted(values)}")
