"""Corrected p-values, by hand and against scipy and statsmodels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from truthgate_eval.analysis.multiple_testing import CORRECTIONS, correct_p_values
from truthgate_eval.errors import TruthGateError


def test_corrections_by_hand() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    assert correct_p_values(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert correct_p_values(p, "bonferroni") == pytest.approx([0.04, 0.16, 0.12, 0.02])
    assert correct_p_values(p, "fdr_bh") == pytest.approx(stats.false_discovery_control(p))
    assert correct_p_values(p, "none") == p and correct_p_values([]) == []
    with pytest.raises(TruthGateError, match="unknown correction 'tukey': expected one of holm"):
        correct_p_values(p, "tukey")


@pytest.mark.parametrize("method", [name for name in CORRECTIONS if name != "none"])
@given(p=st.lists(st.floats(0, 1) | st.sampled_from([0.01, 0.5, 1.0]), min_size=1, max_size=12))
def test_corrections_are_those_of_statsmodels(method: str, p: list[float]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gc.collect", lambda: 0)  # which statsmodels calls every time, for 0.1 s
        expected = multipletests(p, method=method)[1]
    if method == "fdr_bh":
        np.testing.assert_allclose(correct_p_values(p, method), expected, rtol=1e-14, atol=1e-300)
    else:
        assert correct_p_values(p, method) == expected.tolist()
