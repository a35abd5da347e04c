"""Training and validation folds of a cross-validation."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import KFold

from truthgate_eval.errors import ProbeError
from truthgate_eval.probing.config import SplitUnit, check_folds

Fold = tuple[NDArray[np.int64], NDArray[np.int64]]


def make_folds(
    groups: ArrayLike, *, folds: int = 5, split: SplitUnit = "question", seed: int = 42
) -> list[Fold]:
    """(training, validation) indices of each fold, ascending; no sequence is validated twice.

    Args:
        groups: [n]; the question that each sequence belongs to.
        folds: Number of folds of a cross-validation, or 1 for one 4:1 split.
        split: `question` keeps a question's sequences on one side (`docs/method.md#truth-scores`);
            `sequence` shuffles sequences, as the released code does.
        seed: Of the shuffle; the released code's is 42.

    Raises:
        ProbeError: The split is unknown, or there is too little to divide.

    Example:
        >>> (train, validation), *_ = make_folds([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
        >>> train.tolist(), validation.tolist()
        ([0, 1, 4, 5, 6, 7, 8, 9], [2, 3])
    """
    check_folds(folds, split, seed)
    units = np.asarray(groups) if split == "question" else np.arange(np.size(groups))
    names = np.unique(units)
    divisions = 5 if folds == 1 else folds
    if len(names) < divisions:
        raise ProbeError(
            f"{len(names)} {split}s cannot be divided into {divisions} parts: probe on more documents"
        )
    result = []
    for _, validation in KFold(divisions, shuffle=True, random_state=seed).split(names):
        in_validation = np.isin(units, names[validation])
        result.append((np.flatnonzero(~in_validation), np.flatnonzero(in_validation)))
    return result[:folds]
