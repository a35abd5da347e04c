"""P-values corrected for the number of tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from scipy.stats import false_discovery_control

from truthgate_eval.errors import check_choice

Correction = Literal["holm", "bonferroni", "fdr_bh", "none"]
CORRECTIONS: tuple[Correction, ...] = get_args(Correction)


def check_correction(name: str) -> Correction:
    """The correction of that name.

    Raises:
        TruthGateError: There is none.
    """
    return check_choice("correction", name, CORRECTIONS)


def correct_p_values(p_values: Sequence[float], method: str = "holm") -> list[float]:
    """Correct p-values for their number.

    * `holm`: Holm's step-down method, which bounds the probability of any false positive;
    * `bonferroni`: the same bound by multiplication with the number of tests, less powerful than `holm`;
    * `fdr_bh`: Benjamini and Hochberg's step-up method, which bounds the share of false positives;
    * `none`: unchanged.

    Args:
        p_values: P-values, in any order.
        method: One of `CORRECTIONS`.

    Returns:
        The corrected p-values, at most 1, in the order given.

    Raises:
        TruthGateError: The method is none of `CORRECTIONS`.

    Example:
        >>> correct_p_values([0.25, 0.125, 0.5], "holm")
        [0.5, 0.375, 0.5]
    """
    correction = check_correction(method)
    if correction == "none" or not p_values:
        return [float(p) for p in p_values]
    p = np.asarray(p_values, dtype=np.float64)
    if correction == "fdr_bh":
        corrected = false_discovery_control(p, method="bh")
    elif correction == "bonferroni":
        corrected = p * len(p)
    else:
        order = np.argsort(p)
        corrected = np.empty_like(p)
        corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return [float(value) for value in np.minimum(corrected, 1.0)]
