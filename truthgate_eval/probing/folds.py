"""Which sequences train a probe and which judge it."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import KFold

from truthgate_eval.errors import ProbeError

Split = Literal["question", "sequence"]
Fold = tuple[NDArray[np.int64], NDArray[np.int64]]


def check_split(split: str, folds: int) -> None:
    """Raise `ProbeError` unless there are splits of this name and number."""
    if split not in ("question", "sequence"):
        raise ProbeError(f"unknown split {split!r}: expected question or sequence")
    if folds < 1:
        raise ProbeError(f"folds={folds}: expected 1 (one 4:1 split) or more")


def make_folds(
    groups: NDArray[np.int64], *, folds: int = 5, split: str = "question", seed: int = 42
) -> list[Fold]:
    """(training, validation) indices of each fold, ascending; no sequence is validated twice.

    Args:
        groups: [n]; the question that each sequence belongs to.
        folds: Number of folds of a cross-validation, or 1 for one 4:1 split.
        split: `question` keeps a question's sequences on one side (METHOD.md, step 3);
            `sequence` shuffles sequences, as the released code does.
        seed: Of the shuffle; the released code's is 42.

    Raises:
        ProbeError: The split is unknown, or there is too little to divide.
    """
    check_split(split, folds)
    if not 0 <= seed < 2**32:
        raise ProbeError(f"seed={seed}: expected 0 to 2**32 - 1")
    units = np.asarray(groups) if split == "question" else np.arange(len(groups))
    names = np.unique(units)
    parts = 5 if folds == 1 else folds
    if len(names) < parts:
        raise ProbeError(
            f"{len(names)} {split}s cannot be divided into {parts} parts: probe on more documents"
        )
    result = []
    for _, validation in KFold(parts, shuffle=True, random_state=seed).split(names):
        held_out = np.isin(units, names[validation])
        result.append((np.flatnonzero(~held_out), np.flatnonzero(held_out)))
    return result[:folds]
