"""The real small model on the real data: what only they can show. Minutes, not seconds."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.lm_eval.probing import load_lm, load_tokenized
from truthgate_eval.probing.capture import capture
from truthgate_eval.probing.config import ProbeConfig
from truthgate_eval.probing.cross_validation import cross_validate_heads
from truthgate_eval.probing.folds import make_folds

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module")
def activations():
    lm = load_lm("hf", {}, batch_size=8, device="cpu")
    sequences = load_tokenized(lm, ["probe_halueval_qa"], limit=100)
    return capture(lm.model, sequences.tokens), sequences


@pytest.mark.parametrize("site", ["post"])
def test_newton_is_scikit_learn_on_every_real_head(activations, site: str) -> None:
    """Validation accuracy equal on all 270 heads, and the objective within 1e-5, on real activations."""
    x, sequences = activations
    _, layers, heads, _ = x.shape
    ours = cross_validate_heads(x, sequences.labels, sequences.groups, ProbeConfig(solver="newton", folds=1))
    ((train, validation),) = make_folds(sequences.groups, folds=1)
    y = sequences.labels
    for layer in range(layers):
        for head in range(heads):
            features = x[:, layer, head].astype(np.float64)
            reference = LogisticRegression(tol=1e-10, max_iter=20000, solver="newton-cholesky")
            reference.fit(features[train], y[train])
            assert ours.scores[layer, head] == pytest.approx(
                reference.score(features[validation], y[validation])
            )
            reference.fit(features, y)
            weight, bias = (
                ours.probe_weight[layer, head].astype(np.float64),
                float(ours.probe_bias[layer, head]),
            )
            minimum = objective(features, y, reference.coef_[0], float(reference.intercept_[0]))
            assert objective(features, y, weight, bias) <= minimum + 1e-5


def objective(x: np.ndarray, y: np.ndarray, weight: np.ndarray, bias: float) -> float:
    loss = np.logaddexp(0, (1 - 2 * y) * (x @ weight + bias)).sum()
    return 0.5 * float(weight @ weight) + float(loss)


def test_the_shipped_artifact_says_where_it_comes_from() -> None:
    scores = TruthScores.resolve("smollm2-135m-instruct__halueval-qa")
    meta = scores.metadata
    assert scores.shape == (30, 9) and meta["documents"] >= 292 and meta["sequences"] == 2 * meta["documents"]
    assert meta["model"] == "smollm2-135m-instruct" and meta["task"] == "probe_halueval_qa"
    assert meta["rows"]["halueval/qa"] == list(range(meta["documents"]))
    assert {"lam", "norm", "site", "points"} <= meta["recommended"].keys()
    assert meta["recommended"]["subset"] == "selection"
