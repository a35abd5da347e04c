"""Cross-validated probes of every head.

Steps 3 and 4 of `docs/method.md#truth-scores`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from truthgate_eval.errors import ProbeError
from truthgate_eval.probing.activations import Features, head_blocks, row_chunks
from truthgate_eval.probing.config import ProbeConfig, SolverName
from truthgate_eval.probing.folds import Fold, make_folds
from truthgate_eval.probing.newton import NewtonBlock
from truthgate_eval.probing.solvers import Device, Probes, adamw_block, all_finite, block_bytes, device_of
from truthgate_eval.probing.statistics import accuracy_influence, influence_stderr, mean_auroc

Progress = Callable[[int], None]
# Labels [n] and subsets of sequences, to probes.
BlockSolver = Callable[..., Probes]
# What all labels and subsets of a block of heads share is computed once, when its solver is made.
SOLVERS: dict[SolverName, Callable[[torch.Tensor], BlockSolver]] = {
    "adamw": lambda x: partial(adamw_block, x),
    "newton": lambda x: NewtonBlock(x).fit,
}


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """The probes of every head, and how well each tells truthful from hallucinated answers.

    Attributes:
        scores: [layers, heads] mean over folds of the validation accuracy: the truth scores.
        stderr: Standard error of `scores`, clustered by question.
        auroc: Mean over folds of the area under the ROC curve on validation data; NaN where no
            fold's validation data has both labels.
        auroc_stderr: Standard error of `auroc`, clustered by question; NaN where that is.
        train_accuracy: Mean over folds of the training accuracy.
        probe_weight: [layers, heads, width], fitted on all sequences.
        probe_bias: [layers, heads], fitted on all sequences.
        influence: [layers, heads, n] influence of each sequence on the score: (correct - mean) / number of
            validated sequences, 0 where no fold validates it. Standard errors of differences of scores
            are computed from differences of influences.
        settings: How the probes were fitted, and on how much.
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
    labels: ArrayLike,
    groups: ArrayLike,
    config: ProbeConfig | None = None,
    *,
    device: Device | None = None,
    progress: Progress | None = None,
) -> ProbeResult:
    """Fit and cross-validate one linear probe per head, with the config's first seed.

    A probe predicts "truthful" where its logit is above 0.

    Args:
        activations: [n, layers, heads, width], any float type; a memory map is read block by block.
        labels: [n]; 1 truthful, 0 hallucinated.
        groups: [n]; the question that each sequence belongs to.
        config: Solver, folds and seed.
        device: Where the probes are fitted; the activations' own device by default.
        progress: Called with the number of heads that were fitted since the last call.

    Raises:
        ProbeError: The data cannot be probed.

    Example:
        >>> labels, groups = np.tile([1, 0], 20), np.repeat(np.arange(20), 2)
        >>> activations = np.random.default_rng(0).normal(size=(40, 1, 2, 3))
        >>> activations[:, 0, 1, 2] += 9 * labels  # the second head tells them apart
        >>> result = cross_validate_heads(activations, labels, groups, ProbeConfig(solver="newton"))
        >>> result.scores.shape, float(result.scores[0, 1])
        ((1, 2), 1.0)
    """
    config = config or ProbeConfig()
    (result,) = cross_validate_label_sets(
        activations, [labels], groups, config, seeds=[config.seed], device=device, progress=progress
    )
    return result


def cross_validate_label_sets(
    activations: Features,
    label_sets: Sequence[ArrayLike],
    groups: ArrayLike,
    config: ProbeConfig,
    *,
    seeds: Sequence[int],
    device: Device | None = None,
    progress: Progress | None = None,
) -> list[ProbeResult]:
    """`cross_validate_heads` for several label arrays of the same activations, which are read once.

    Args:
        activations: [n, layers, heads, width].
        label_sets: Label arrays, each [n].
        groups: [n].
        config: Solver and folds.
        seeds: For each label array, the seed of its folds.
        device: Where the probes are fitted.
        progress: Called with the number of heads that were fitted on one label array.

    Raises:
        ProbeError: The data cannot be probed.
    """
    checked = [_check_shapes(activations, labels, groups) for labels in label_sets]
    clusters = checked[0][1]
    problems = []
    for (truth, _), seed in zip(checked, seeds, strict=True):
        splits = make_folds(clusters, folds=config.folds, split=config.split, seed=seed)
        _check_folds(truth, splits)
        problems.append(_Problem(truth, clusters, splits, tuple(activations.shape), config, seed))
    _check_finite(activations)
    device = device_of(activations, device)
    for first_head, block in head_blocks(activations, device, block_bytes(device)):
        solve = partial(SOLVERS[config.solver](block), **config.solver_settings)
        for problem in problems:
            problem.fit_block(first_head, block, solve)
            if progress is not None:
                progress(len(block))
    return [problem.result() for problem in problems]


class _Problem:
    """One label array with its folds, and the results of the heads that were fitted."""

    def __init__(
        self,
        truth: NDArray[np.int64],
        clusters: NDArray[Any],
        splits: list[Fold],
        shape: tuple[int, ...],
        config: ProbeConfig,
        seed: int,
    ) -> None:
        self.truth, self.clusters, self.splits, self.shape = truth, clusters, splits, shape
        self.settings = {
            "solver": config.solver,
            **config.solver_settings,
            "folds": config.folds,
            "split": config.split,
            "seed": seed,
            "sequences": len(truth),
            "groups": len(np.unique(clusters)),
            "class_balance": float(truth.mean()),
        }
        self.arrays: dict[str, NDArray[np.float32]] = {}

    def fit_block(self, first_head: int, x: torch.Tensor, solve: BlockSolver) -> None:
        """Fit and score a block of heads [heads, n, width], the first of which has this number."""
        _, layers, heads, _ = self.shape
        for name, values in self._probe_block(x, solve):
            whole = self.arrays.setdefault(
                name, np.empty((layers * heads, *values.shape[1:]), dtype=np.float32)
            )
            whole[first_head : first_head + len(values)] = values

    def _probe_block(self, x: torch.Tensor, solve: BlockSolver) -> Iterator[tuple[str, NDArray[Any]]]:
        """Names and values [heads, ...] of the result's arrays."""
        truth, clusters, splits = self.truth, self.clusters, self.splits
        everything = np.arange(len(truth))
        subsets = [
            torch.from_numpy(rows).to(x.device) for rows in (*(train for train, _ in splits), everything)
        ]
        weight, bias = solve(torch.from_numpy(truth).to(x.device), subsets)
        # Logits in the solver's own precision: [heads, folds, n].
        z = torch.bmm(weight[:-1].transpose(0, 1), x.to(weight.dtype).transpose(1, 2))
        logits = (z + bias[:-1].T[:, :, None]).cpu().numpy()
        correct = (logits > 0) == (truth == 1)
        validated = [(correct[:, k, rows], logits[:, k, rows], rows) for k, (_, rows) in enumerate(splits)]
        columns = np.concatenate([rows for _, _, rows in validated])
        influence = np.zeros((len(x), len(truth)))
        influence[:, columns] = accuracy_influence(
            np.concatenate([of_fold for of_fold, _, _ in validated], axis=1)
        )
        area, area_stderr = mean_auroc([(logit, rows) for _, logit, rows in validated], truth, clusters)
        yield "scores", np.mean([of_fold.mean(axis=1) for of_fold, _, _ in validated], axis=0)
        yield "stderr", influence_stderr(influence[:, columns], clusters[columns])
        yield "auroc", area
        yield "auroc_stderr", area_stderr
        train = [correct[:, k, rows].mean(axis=1) for k, (rows, _) in enumerate(splits)]
        yield "train_accuracy", np.mean(train, axis=0)
        yield "probe_weight", weight[-1].cpu().numpy()
        yield "probe_bias", bias[-1].cpu().numpy()
        yield "influence", influence

    def result(self) -> ProbeResult:
        _, layers, heads, _ = self.shape
        shaped = {name: array.reshape(layers, heads, *array.shape[1:]) for name, array in self.arrays.items()}
        return ProbeResult(settings=self.settings, **shaped)


def _check_shapes(
    activations: Features, labels: ArrayLike, groups: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[Any]]:
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
    """Check all activations before anything is fitted, since fitting can take long."""
    for layer in range(activations.shape[1]):
        for _, chunk in row_chunks(activations, slice(layer, layer + 1), slice(None)):
            if not all_finite(chunk):
                _, _, head, _ = (~torch.isfinite(chunk)).nonzero()[0].tolist()
                raise ProbeError(
                    f"layer {layer}, head {head} has NaN or infinite activations: probe in float32"
                )
