"""Probes fitted again on other assignments of folds: their mean, and how far they are apart."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.probing.activations import Features
from truthgate_eval.probing.cross_validation import ProbeResult, cross_validate_label_sets
from truthgate_eval.probing.statistics import influence_stderr, mean_of_known


@dataclass(frozen=True, eq=False)
class RepeatedCV:
    """The results of several seeds.

    Attributes:
        mean: The first seed's result with the mean over seeds of its scores, AUROC and training
            accuracy. `stderr` is that of the mean: seeds take the chance of the folds out of it, and
            leave what the choice of documents brings.
        accuracy: [seeds, layers, heads].
        auroc: [seeds, layers, heads].
    """

    mean: ProbeResult
    accuracy: NDArray[np.float32]
    auroc: NDArray[np.float32]


def repeat_cross_validation(
    activations: Features,
    *labels: Sequence[NDArray[np.int64]],
    groups: Any,
    seed: int = 42,
    **options: Any,
) -> list[RepeatedCV]:
    """Fit and judge every head's probe once for each of the seeds `seed`, `seed` + 1, ...

    Args:
        activations: As in `cross_validate_heads`; read once for all that is fitted.
        *labels: For each answer, one array for each seed: the same each time, or shuffled anew.
        groups: As in `cross_validate_heads`.
        seed: Chooses the folds of the first.
        **options: As in `cross_validate_heads`.
    """
    sets = [truth for some in labels for truth in some]
    seeds = [seed + number for some in labels for number in range(len(some))]
    results = iter(cross_validate_label_sets(activations, sets, groups, seeds=seeds, **options))
    return [_together(list(itertools.islice(results, len(some))), groups) for some in labels]


def _together(results: list[ProbeResult], groups: Any) -> RepeatedCV:
    """One answer's results of all seeds."""
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
        auroc=mean_of_known(areas).astype(np.float32),
        # One seed's error on average, which the mean's is not above.
        auroc_stderr=mean_of_known(area_errors).astype(np.float32),
        train_accuracy=np.mean([result.train_accuracy for result in results], axis=0),
        influence=influence,
    )
    return RepeatedCV(mean, accuracy, areas)


def difference_stderr(influence: NDArray[Any], groups: Any) -> NDArray[np.float32]:
    """Standard error [layers, heads] of a score, or of a difference of scores, with documents clustered.

    Args:
        influence: [layers, heads, n]; of a difference, the difference of both influences, so that
            what both get wrong counts on neither side.
        groups: [n]; the document of each sequence.
    """
    judged = influence.any(axis=(0, 1))
    clusters = np.asarray(groups)[judged]
    # Layer by layer: the sums over documents are float64.
    return np.stack([influence_stderr(layer[:, judged], clusters) for layer in influence]).astype(np.float32)
