"""How well each head tells truth from hallucination: all heads' probes, fitted and judged.

METHOD.md, "Truth scores", steps 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from truthgate_eval.errors import ProbeError
from truthgate_eval.probing.activations import Features, head_blocks, row_chunks
from truthgate_eval.probing.folds import Fold, make_folds
from truthgate_eval.probing.newton import NewtonBlock
from truthgate_eval.probing.solvers import Probes, adamw_block, all_finite, block_bytes, device_of
from truthgate_eval.probing.statistics import influence_of, influence_stderr, mean_auroc

Solver = Callable[..., Probes]  # takes labels [n] and subsets
# From a block of heads to the solver of any labels and subsets of it: what these share is made once.
SOLVERS: dict[str, Callable[[torch.Tensor], Solver]] = {
    "adamw": lambda x: partial(adamw_block, x),
    "newton": lambda x: NewtonBlock(x).fit,
}
SOLVER_SETTINGS: dict[str, dict[str, float]] = {
    "adamw": {"lr": 1e-2, "weight_decay": 1e-3, "epochs": 200, "batch_size": 512},
    "newton": {"C": 1.0, "tol": 1e-8, "max_iter": 100},
}


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


def cross_validate_heads(
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
    (result,) = cross_validate_label_sets(
        activations, [labels], groups, seeds=[seed], solver=solver, folds=folds, split=split,
        device=device, progress=progress, **options,
    )  # fmt: skip
    return result


def cross_validate_label_sets(
    activations: Features,
    label_sets: Sequence[Any],
    groups: Any,
    *,
    seeds: Sequence[int],
    solver: str = "adamw",
    folds: int = 5,
    split: str = "question",
    device: str | torch.device | None = None,
    progress: Callable[[int], None] | None = None,
    **options: float,
) -> list[ProbeResult]:
    """`cross_validate_heads` for several labels of the same activations, which are read once for all of them.

    Args:
        activations: As there, and so are the others.
        label_sets: Each [n].
        groups: As there.
        seeds: For each of the labels, what chooses its folds.
        solver: As there.
        folds: As there.
        split: As there.
        device: As there.
        progress: Called with the number of heads that were done with one set of labels.
        **options: As there.

    Raises:
        ProbeError: A setting does not exist, or the data cannot be probed.
    """
    settings = _settings(solver, options)
    checked = [_check_shapes(activations, labels, groups) for labels in label_sets]
    clusters = checked[0][1]
    problems = []
    for (truth, _), seed in zip(checked, seeds, strict=True):
        splits = make_folds(clusters, folds=folds, split=split, seed=seed)
        _check_folds(truth, splits)
        record = {"solver": solver, **settings, "folds": folds, "split": split, "seed": seed}
        problems.append(_Problem(truth, clusters, splits, record, tuple(activations.shape)))
    _check_finite(activations)
    device = device_of(activations, device)
    for first, block in head_blocks(activations, device, block_bytes(device)):
        solve = SOLVERS[solver](block)
        for problem in problems:
            problem.keep(first, _probe_block(block, problem.truth, clusters, problem.splits, solve, settings))
            if progress is not None:
                progress(len(block))
    return [problem.result() for problem in problems]


class _Problem:
    """One set of labels with its folds, and the results of the heads that are done."""

    def __init__(
        self,
        truth: NDArray[np.int64],
        clusters: NDArray[Any],
        splits: list[Fold],
        record: dict[str, Any],
        shape: tuple[int, ...],
    ) -> None:
        self.truth, self.splits, self.shape = truth, splits, shape
        self.record = {
            **record,
            "sequences": len(truth),
            "groups": len(np.unique(clusters)),
            "class_balance": float(truth.mean()),
        }
        self.arrays: dict[str, NDArray[np.float32]] = {}

    def keep(self, first: int, part: dict[str, NDArray[Any]]) -> None:
        """Put the arrays [heads, ...] of a block into their places."""
        _, layers, heads, _ = self.shape
        for name, values in part.items():
            whole = self.arrays.setdefault(
                name, np.empty((layers * heads, *values.shape[1:]), dtype=np.float32)
            )
            whole[first : first + len(values)] = values

    def result(self) -> ProbeResult:
        _, layers, heads, _ = self.shape
        shaped = {name: array.reshape(layers, heads, *array.shape[1:]) for name, array in self.arrays.items()}
        return ProbeResult(settings=self.record, **shaped)


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
    weight, bias = solve(torch.from_numpy(truth).to(x.device), subsets, **settings)
    # Judged in the solver's own precision: [heads, folds, n].
    z = torch.bmm(weight[:-1].transpose(0, 1), x.to(weight.dtype).transpose(1, 2))
    logits = (z + bias[:-1].T[:, :, None]).cpu().numpy()
    correct = (logits > 0) == (truth == 1)
    validated = [(correct[:, k, rows], logits[:, k, rows], rows) for k, (_, rows) in enumerate(splits)]
    judged = np.concatenate([rows for _, _, rows in validated])
    influence = np.zeros((len(x), len(truth)))
    influence[:, judged] = influence_of(np.concatenate([right for right, _, _ in validated], axis=1))
    area, area_stderr = mean_auroc([(logit, rows) for _, logit, rows in validated], truth, clusters)
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
    for layer in range(activations.shape[1]):
        for _, part in row_chunks(activations, slice(layer, layer + 1), slice(None)):
            if not all_finite(part):
                _, _, head, _ = (~torch.isfinite(part)).nonzero()[0].tolist()
                raise ProbeError(
                    f"layer {layer}, head {head} has NaN or infinite activations: probe in float32"
                )
