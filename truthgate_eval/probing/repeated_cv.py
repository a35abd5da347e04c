"""Cross-validation repeated on other assignments of folds."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from truthgate_eval.probing.activations import Features
from truthgate_eval.probing.config import ProbeConfig
from truthgate_eval.probing.cross_validation import ProbeResult, Progress, cross_validate_label_sets
from truthgate_eval.probing.statistics import difference_stderr, mean_of_finite


@dataclass(frozen=True, eq=False)
class RepeatedCV:
    """Cross-validation with several seeds.

    Attributes:
        mean: The first seed's result with the mean over seeds of its scores, AUROC and training
            accuracy. `stderr` is that of the mean over seeds: it no longer contains the chance of one
            assignment of folds, only that of the choice of documents.
        accuracy: [seeds, layers, heads].
        auroc: [seeds, layers, heads].
    """

    mean: ProbeResult
    accuracy: NDArray[np.float32]
    auroc: NDArray[np.float32]


def repeat_cross_validation(
    activations: Features,
    *label_sets: Sequence[ArrayLike],
    groups: ArrayLike,
    config: ProbeConfig | None = None,
    progress: Progress | None = None,
) -> list[RepeatedCV]:
    """Fit and cross-validate every head's probe once for each seed of the config.

    Args:
        activations: As in `cross_validate_heads`; read once for everything that is fitted.
        *label_sets: Each has one array of labels [n] for each seed: the same every time, or shuffled anew.
        groups: As in `cross_validate_heads`.
        config: Solver, folds and seeds.
        progress: Called with the number of heads that were fitted since the last call.

    Returns:
        One result for each of `label_sets`.
    """
    config = config or ProbeConfig()
    labels = [each for of_seeds in label_sets for each in of_seeds]
    seeds = [config.seed + number for of_seeds in label_sets for number in range(len(of_seeds))]
    results = iter(
        cross_validate_label_sets(activations, labels, groups, config, seeds=seeds, progress=progress)
    )
    return [_mean_over_seeds(list(itertools.islice(results, len(own))), groups) for own in label_sets]


def _mean_over_seeds(results: list[ProbeResult], groups: ArrayLike) -> RepeatedCV:
    first = results[0]
    accuracy, areas = (np.stack([getattr(r, name) for r in results]) for name in ("scores", "auroc"))
    if len(results) == 1:
        return RepeatedCV(first, accuracy, areas)
    influence = np.mean([result.influence for result in results], axis=0)
    area_errors = np.stack([result.auroc_stderr for result in results])
    mean = dataclasses.replace(
        first,
        scores=accuracy.mean(axis=0),
        stderr=difference_stderr(influence, groups),
        auroc=mean_of_finite(areas).astype(np.float32),
        # The mean of the seeds' errors, an upper bound of the error of the mean.
        auroc_stderr=mean_of_finite(area_errors).astype(np.float32),
        train_accuracy=np.mean([result.train_accuracy for result in results], axis=0),
        influence=influence,
    )
    return RepeatedCV(mean, accuracy, areas)
