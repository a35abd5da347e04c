"""How well each head tells truth from hallucination: all heads' probes, fitted and judged.

METHOD.md, "Truth scores", steps 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from truthgate_eval.errors import ProbeError
from truthgate_eval.solvers import Features, Probes, adamw_block, device_of, head_blocks, newton_block
from truthgate_eval.splits import Fold, make_folds

Solver = Callable[..., Probes]
SOLVERS: dict[str, Solver] = {"adamw": adamw_block, "newton": newton_block}
SOLVER_SETTINGS: dict[str, dict[str, float]] = {
    "adamw": {"lr": 1e-2, "weight_decay": 1e-3, "epochs": 200, "batch_size": 512},
    "newton": {"C": 1.0, "tol": 1e-8, "max_iter": 100},
}
# Activations that are looked through at once for NaN.
_CHECKED_AT_ONCE = 2**24


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """The probes of every head.

    Attributes:
        scores: [layers, heads] mean over folds of the validation accuracy: the truth scores.
        stderr: Standard error of `scores`, clustered by question.
        auroc: Mean over folds of the area under the ROC curve on validation data; NaN where no
            fold's validation data has both labels.
        auroc_stderr: Standard error of `auroc`, clustered by question; NaN where that is.
        train_accuracy: Mean over folds of the training accuracy.
        probe_weight: [layers, heads, width], fitted on all sequences.
        probe_bias: [layers, heads], fitted on all sequences.
        influence: [layers, heads, n] what each sequence adds to the score's error: (right - mean) / number
            judged, 0 where no fold judges it. Differences of scores have standard errors through it.
        settings: How the probes were fitted and on how much.
    """

    scores: NDArray[np.float32]
    stderr: NDArray[np.float32]
    auroc: NDArray[np.float32]
    auroc_stderr: NDArray[np.float32]
    train_accuracy: NDArray[np.float32]
    probe_weight: NDArray[np.float32]
    probe_bias: NDArray[np.float32]
    influence: NDArray[np.float32]
    settings: dict[str, Any]


def probe_heads(
    activations: Features,
    labels: Any,
    groups: Any,
    *,
    solver: str = "adamw",
    folds: int = 5,
    split: str = "question",
    seed: int = 42,
    device: str | torch.device | None = None,
    progress: Callable[[int], None] | None = None,
    **options: float,
) -> ProbeResult:
    """Fit and judge one linear probe per head; a probe says "truthful" where its logit is above 0.

    Args:
        activations: [n, layers, heads, width], any float type; a memory map is read block by block.
        labels: [n]; 1 truthful, 0 hallucinated.
        groups: [n]; the question that each sequence belongs to.
        solver: `adamw` (the paper's) or `newton` (scikit-learn's objective, to convergence).
        folds: 5 for the mean over five folds, 1 for one 4:1 split.
        split: `question` or `sequence`, see `make_folds`.
        seed: Chooses the folds; nothing else is random.
        device: Where the probes are fitted; the activations' own device if not given.
        progress: Called with the number of heads that were done since the last call.
        **options: Settings of the solver, see `SOLVER_SETTINGS`.

    Raises:
        ProbeError: A setting does not exist, or the data cannot be probed.
    """
    settings = _settings(solver, options)
    truth, clusters = _check_shapes(activations, labels, groups)
    splits = make_folds(clusters, folds=folds, split=split, seed=seed)
    _check_folds(truth, splits)
    _check_finite(activations)
    device = device_of(activations, device)
    parts = []
    for block in head_blocks(activations, device):
        parts.append(_probe_block(block, truth, clusters, splits, SOLVERS[solver], settings))
        if progress is not None:
            progress(len(block))
    shape = tuple(activations.shape[1:3])
    arrays = {name: np.concatenate([part[name] for part in parts]).astype(np.float32) for name in parts[0]}
    record = {
        **{"solver": solver, **settings, "folds": folds, "split": split, "seed": seed},
        "sequences": len(truth),
        "groups": len(np.unique(clusters)),
        "class_balance": float(truth.mean()),
    }
    shaped = {name: array.reshape(*shape, *array.shape[1:]) for name, array in arrays.items()}
    return ProbeResult(settings=record, **shaped)


def _probe_block(
    x: torch.Tensor,
    truth: NDArray[np.int64],
    clusters: NDArray[Any],
    splits: list[Fold],
    solve: Solver,
    settings: dict[str, float],
) -> dict[str, NDArray[Any]]:
    """The result's arrays, each [heads, ...], for a block of heads [heads, n, width]."""
    everything = np.arange(len(truth))
    subsets = [torch.from_numpy(rows).to(x.device) for rows in (*(train for train, _ in splits), everything)]
    weight, bias = solve(x, torch.from_numpy(truth).to(x.device), subsets, **settings)
    # Judged in the solver's own precision: [heads, folds, n].
    z = torch.bmm(weight[:-1].transpose(0, 1), x.to(weight.dtype).transpose(1, 2))
    logits = (z + bias[:-1].T[:, :, None]).cpu().numpy()
    correct = (logits > 0) == (truth == 1)
    validated = [(correct[:, k, rows], logits[:, k, rows], rows) for k, (_, rows) in enumerate(splits)]
    judged = np.concatenate([rows for _, _, rows in validated])
    influence = np.zeros((len(x), len(truth)))
    influence[:, judged] = _influence(np.concatenate([right for right, _, _ in validated], axis=1))
    area, area_stderr = _mean_auroc([(logit, rows) for _, logit, rows in validated], truth, clusters)
    return {
        "scores": np.mean([right.mean(axis=1) for right, _, _ in validated], axis=0),
        "stderr": influence_stderr(influence[:, judged], clusters[judged]),
        "auroc": area,
        "auroc_stderr": area_stderr,
        "train_accuracy": np.mean(
            [correct[:, k, train].mean(axis=1) for k, (train, _) in enumerate(splits)], axis=0
        ),
        "probe_weight": weight[-1].cpu().numpy(),
        "probe_bias": bias[-1].cpu().numpy(),
        "influence": influence,
    }


def auroc(logits: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Area under the ROC curve of each row of `logits` [heads, n]; ties count half.

    The Mann-Whitney statistic over ranks; NaN where `labels` has one class only.
    """
    if len(np.unique(labels)) < 2:
        return np.full(len(logits), np.nan)
    return _placements(logits, labels)[:, labels == 1].mean(axis=1)


def auroc_influence(logits: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """What each sequence adds to the error of `auroc`, [heads, n]; NaN where `labels` has one class only.

    DeLong's components about their mean, each divided by the number of its class; summed by cluster
    they give Obuchowski's variance for clustered data.
    """
    if len(np.unique(labels)) < 2:
        return np.full(logits.shape, np.nan)
    placements = _placements(logits, labels)
    area = placements[:, labels == 1].mean(axis=1, keepdims=True)
    return (placements - area) / np.where(labels == 1, (labels == 1).sum(), (labels == 0).sum())


def _placements(logits: NDArray[Any], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """For a truthful sequence the share of others below it, for another the share of truthful above it."""
    placements = np.empty(logits.shape)
    ranks = rankdata(logits, axis=1)
    for label in (0, 1):
        mine = labels == label
        below = (ranks[:, mine] - rankdata(logits[:, mine], axis=1)) / (~mine).sum()
        placements[:, mine] = below if label else 1 - below
    return placements


def _mean_auroc(
    validated: list[tuple[NDArray[Any], NDArray[np.int64]]], truth: NDArray[np.int64], clusters: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean of `auroc` over the folds (logits, rows) that have both labels, and its standard error."""
    areas = np.array([auroc(logits, truth[rows]) for logits, rows in validated])
    known = np.isfinite(areas).all(axis=1).sum()
    if not known:
        return areas[0], areas[0]
    influence = np.concatenate([auroc_influence(logits, truth[rows]) for logits, rows in validated], axis=1)
    judged = clusters[np.concatenate([rows for _, rows in validated])]
    return mean_of_known(areas), influence_stderr(np.nan_to_num(influence) / known, judged)


def mean_of_known(values: NDArray[Any]) -> NDArray[np.float64]:
    """Mean over the first dimension of what is not NaN; NaN, without a warning, where nothing is."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def clustered_stderr(correct: NDArray[Any], clusters: NDArray[Any]) -> NDArray[np.float64]:
    """Standard error of each row's mean of `correct` [heads, n], with sequences clustered."""
    return influence_stderr(_influence(correct), clusters)


def _influence(correct: NDArray[Any]) -> NDArray[np.float64]:
    return (correct - correct.mean(axis=1, keepdims=True)) / correct.shape[1]


def influence_stderr(influence: NDArray[Any], clusters: NDArray[Any]) -> NDArray[np.float64]:
    """Standard error of a statistic from each sequence's influence on it [..., n], with sequences clustered.

    sqrt(sum over clusters of (sum of influences)^2), times sqrt(G / (G - 1)) for G clusters.
    """
    names, index = np.unique(clusters, return_inverse=True)
    sums = np.zeros((len(names), *influence.shape[:-1]))
    np.add.at(sums, index, np.moveaxis(influence, -1, 0))
    return np.sqrt(len(names) / max(len(names) - 1, 1) * (sums**2).sum(axis=0))


def check_solver(solver: str) -> None:
    """Raise `ProbeError` unless `solver` is one of `SOLVERS`."""
    if solver not in SOLVERS:
        raise ProbeError(f"unknown solver {solver!r}: expected one of {', '.join(SOLVERS)}")


def _settings(solver: str, options: dict[str, float]) -> dict[str, float]:
    """All settings of the solver, those given in place of the defaults."""
    check_solver(solver)
    defaults = SOLVER_SETTINGS[solver]
    if unknown := sorted(options.keys() - defaults.keys()):
        raise ProbeError(f"solver {solver} has no setting {', '.join(unknown)}: it has {', '.join(defaults)}")
    for name, value in options.items():
        kinds = (int,) if isinstance(defaults[name], int) else (int, float)
        at_least_zero = name == "weight_decay" and value == 0
        if not (isinstance(value, kinds) and math.isfinite(value) and (value > 0 or at_least_zero)):
            raise ProbeError(f"{name}={value!r}: expected a positive {kinds[-1].__name__}")
    return {**defaults, **options}


def _check_shapes(activations: Features, labels: Any, groups: Any) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """The labels and groups as arrays."""
    shape = tuple(activations.shape)
    if len(shape) != 4 or 0 in shape:
        raise ProbeError(f"activations have shape {shape}, expected [n, layers, heads, width]")
    truth, clusters = np.asarray(labels), np.asarray(groups)
    if not shape[:1] == truth.shape == clusters.shape:
        raise ProbeError(
            f"{shape[0]} activations, labels of shape {truth.shape} and groups of shape {clusters.shape}: "
            "expected one of each per sequence"
        )
    values = np.unique(truth).tolist()
    if values != [0, 1]:
        raise ProbeError(f"probing needs sequences of both labels, 0 and 1; the labels are {values[:5]}")
    return truth.astype(np.int64), clusters


def _check_folds(truth: NDArray[np.int64], splits: list[Fold]) -> None:
    for number, (train, _) in enumerate(splits, start=1):
        if len(np.unique(truth[train])) < 2:
            raise ProbeError(
                f"all training sequences of fold {number} have label {truth[train][0]}: "
                "probe on more documents, or with another seed"
            )


def _check_finite(activations: Features) -> None:
    """Look through everything before anything is fitted: a fit can take long."""
    rows = max(1, _CHECKED_AT_ONCE // math.prod(activations.shape[1:]))
    for start in range(0, len(activations), rows):
        part = activations[start : start + rows]
        if not isinstance(part, torch.Tensor):
            part = torch.from_numpy(np.array(part, dtype=np.float32))
        bad = (~torch.isfinite(part.float())).nonzero()
        if len(bad):
            _, layer, head, _ = bad[0].tolist()
            raise ProbeError(f"layer {layer}, head {head} has NaN or infinite activations: probe in float32")
