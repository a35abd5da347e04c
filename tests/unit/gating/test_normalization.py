from __future__ import annotations

import numpy as np
import pytest

from truthgate_eval.errors import GateError
from truthgate_eval.gating.normalization import normalize


def test_norms_are_the_formulas_within_each_layer() -> None:
    scores = np.array([[0.5, 0.7, 0.9], [0.6, 0.6, 0.6]])
    np.testing.assert_allclose(normalize(scores, "minmax"), [[0, 0.5, 1], [0, 0, 0]], atol=1e-5)
    np.testing.assert_allclose(normalize(scores, "centered"), [[-0.2, 0, 0.2], [0, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(normalize(scores, "zscore")[0], [-np.sqrt(1.5), 0, np.sqrt(1.5)], atol=1e-12)
    np.testing.assert_allclose(normalize(scores, "zscore")[1], 0)
    np.testing.assert_allclose(normalize(scores, "none"), scores)
    with pytest.raises(GateError, match="unknown norm 'max'"):
        normalize(scores, "max")
