"""The probes against scikit-learn, and against the released code's procedure written out plainly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold
from torch import nn

from truthgate_eval.errors import ProbeError
from truthgate_eval.probe import auroc, clustered_stderr, probe_heads
from truthgate_eval.solvers import fit_adamw, fit_newton
from truthgate_eval.splits import make_folds


def pairs(n: int = 120, layers: int = 2, heads: int = 3, width: int = 6, signal: float = 0.6, seed: int = 0):
    """Correlated features with a signal; two sequences, one of each label, to a question."""
    rng = np.random.default_rng(seed)
    labels = np.tile([1, 0], n // 2)
    mixing = rng.normal(size=(width, width))
    x = rng.normal(size=(n, layers, heads, width)) @ mixing
    x += signal * (2 * labels - 1)[:, None, None, None] * rng.normal(size=(layers, heads, width))
    return x.astype(np.float32), labels, np.repeat(np.arange(n // 2), 2)


def objective(x: np.ndarray, y: np.ndarray, w: np.ndarray, b: float, c: float = 1.0) -> float:
    z = x.astype(np.float64) @ w.astype(np.float64) + float(b)
    return 0.5 * float(w.astype(np.float64) @ w) + c * float(np.logaddexp(0, (1 - 2 * y) * z).sum())


CASES = {
    "plain": lambda: pairs(),
    "fewer sequences than features": lambda: pairs(n=20, width=40),
    "separable": lambda: pairs(signal=8.0),
    "one feature a thousand times the others": lambda: scaled(pairs(), 1000.0),
    "tiny features": lambda: scaled(pairs(), 1e-3),
}


def scaled(data, factor: float):
    x, labels, groups = data
    x[..., 0] *= factor
    return x, labels, groups


@pytest.mark.parametrize("case", CASES)
def test_newton_reaches_scikit_learns_minimum(case: str) -> None:
    x, labels, _ = CASES[case]()
    flat = torch.from_numpy(x.reshape(len(x), -1, x.shape[-1]).swapaxes(0, 1).copy())
    weight, bias = fit_newton(flat, torch.from_numpy(labels))
    for head in range(len(flat)):
        reference = LogisticRegression(C=1.0, tol=1e-8, max_iter=10000, solver="newton-cholesky")
        reference.fit(flat[head].double().numpy(), labels)
        theirs = objective(flat[head].numpy(), labels, reference.coef_[0], reference.intercept_[0])
        ours = objective(flat[head].numpy(), labels, weight[head].numpy(), bias[head].item())
        assert ours <= theirs + 1e-5


def test_newton_leaves_silent_heads_and_features_at_zero() -> None:
    x = torch.from_numpy(pairs()[0].reshape(120, 6, 6).swapaxes(0, 1).copy())
    x[0] = 0  # a head that never writes
    x[1, :, 2] = 0  # a feature that is always 0
    weight, bias = fit_newton(x, torch.from_numpy(pairs()[1]))
    assert torch.isfinite(weight).all() and torch.isfinite(bias).all()
    assert (weight[0] == 0).all() and weight[1, 2] == 0 and (weight[1, :2] != 0).all()


def their_procedure(x: np.ndarray, y: np.ndarray) -> float:
    """METHOD.md, last section, for one head: five folds of sequences, seed 42, AdamW, batches of 512."""
    accuracies = []
    for train, validation in KFold(n_splits=5, shuffle=True, random_state=42).split(x):
        probe = nn.Linear(x.shape[1], 1)
        nn.init.zeros_(probe.weight)
        nn.init.zeros_(probe.bias)
        optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-2, weight_decay=1e-3)
        xt, yt = torch.from_numpy(x[train]), torch.from_numpy(y[train]).float()
        for _ in range(200):
            for start in range(0, len(xt), 512):
                optimizer.zero_grad()
                logits = probe(xt[start : start + 512])[:, 0]
                nn.functional.binary_cross_entropy_with_logits(logits, yt[start : start + 512]).backward()
                optimizer.step()
        with torch.no_grad():
            predicted = (probe(torch.from_numpy(x[validation]))[:, 0] > 0).numpy()
        accuracies.append((predicted == y[validation]).mean())
    return float(np.mean(accuracies))


def test_adamw_with_sequence_folds_is_the_released_codes_procedure() -> None:
    x, labels, groups = pairs(n=700, layers=1, heads=3, signal=0.3)  # more than one batch of 512
    found = probe_heads(x, labels, groups, solver="adamw", folds=5, split="sequence", seed=42)
    expected = [their_procedure(x[:, 0, head], labels) for head in range(3)]
    np.testing.assert_allclose(found.scores[0], expected, atol=1e-3)
    assert min(expected) < 0.6 and 0.9 < max(expected) < 0.99  # from near chance to near certainty


def test_adamw_of_many_heads_is_adamw_of_each() -> None:
    x, labels, _ = pairs()
    flat = torch.from_numpy(x.reshape(120, 6, 6).swapaxes(0, 1).copy())
    together = fit_adamw(flat, torch.from_numpy(labels), epochs=20)
    for head in range(6):
        alone = fit_adamw(flat[head : head + 1], torch.from_numpy(labels), epochs=20)
        torch.testing.assert_close(together[0][head], alone[0][0])
        torch.testing.assert_close(together[1][head], alone[1][0])


@pytest.mark.parametrize("solver", ["newton", "adamw"])
def test_a_planted_signal_is_found_and_noise_is_chance(solver: str) -> None:
    x, labels, groups = pairs(n=400, signal=0.0)
    x[:, 1, 2, 3] += 3.0 * (2 * labels - 1) * np.abs(x[:, 1, 2, 3]).mean()
    result = probe_heads(x, labels, groups, solver=solver)
    noise = np.delete(result.scores.ravel(), 5)
    assert result.scores[1, 2] > 0.9 and result.auroc[1, 2] > 0.95
    assert np.abs(noise - 0.5).max() < 0.12 and abs(noise.mean() - 0.5) < 0.05
    shuffled = np.random.default_rng(1).permutation(labels)
    assert abs(probe_heads(x, shuffled, groups, solver=solver).scores[1, 2] - 0.5) < 0.12


def test_a_question_that_gives_itself_away_does_not_help_by_question() -> None:
    """Each question has its own direction: known from one of its sequences, useless for another's."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 4)
    secret = rng.integers(0, 2, size=100)[groups]  # all of a question's sequences share their label
    x = np.eye(100, dtype=np.float32)[groups][:, None, None, :] * 50
    by_sequence = probe_heads(x, secret, groups, solver="newton", split="sequence").scores[0, 0]
    by_question = probe_heads(x, secret, groups, solver="newton", split="question").scores[0, 0]
    assert by_sequence > 0.95 and by_question < 0.7


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pairs()
    whole = probe_heads(*data, solver="newton")
    monkeypatch.setattr("truthgate_eval.probe._BLOCK_BYTES", 1)
    done: list[int] = []
    pieces = probe_heads(*data, solver="newton", progress=done.append)
    assert done == [1] * 6
    np.testing.assert_array_equal(whole.scores, pieces.scores)
    np.testing.assert_allclose(whole.probe_weight, pieces.probe_weight, rtol=1e-4, atol=1e-6)


def test_one_split_is_four_to_one() -> None:
    x, labels, groups = pairs()
    (train, validation), *rest = make_folds(groups, folds=1)
    assert not rest and len(train) == 96 and len(validation) == 24
    result = probe_heads(x, labels, groups, folds=1, solver="newton")
    reference = LogisticRegression(tol=1e-8, max_iter=1000).fit(x[train, 0, 0], labels[train])
    assert result.scores[0, 0] == pytest.approx(reference.score(x[validation, 0, 0], labels[validation]))


@hypothesis_settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(0, 30), min_size=40, max_size=80),
    st.integers(1, 6),
    st.sampled_from(["question", "sequence"]),
    st.integers(0, 5),
)
def test_folds_cover_every_sequence_once_and_split_no_question(
    names: list[int], folds: int, split: str, seed: int
) -> None:
    groups = np.array(names)
    if len(np.unique(groups)) < 6:
        return
    parts = make_folds(groups, folds=folds, split=split, seed=seed)
    again = make_folds(groups, folds=folds, split=split, seed=seed)
    assert len(parts) == folds
    for (train, validation), (train_again, _) in zip(parts, again, strict=True):
        assert np.array_equal(train, train_again)
        assert sorted([*train, *validation]) == list(range(len(groups)))
        if split == "question":
            assert not set(groups[train]) & set(groups[validation])
    if folds > 1:
        assert sorted(np.concatenate([validation for _, validation in parts])) == list(range(len(groups)))


def test_auroc_is_scikit_learns_ties_included() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.integers(0, 6, size=(5, 60)).astype(float), rng.integers(0, 2, size=60)
    expected = [roc_auc_score(labels, row) for row in logits]
    np.testing.assert_allclose(auroc(logits, labels), expected)
    assert np.isnan(auroc(logits, np.ones(60, dtype=int))).all()


def test_stderr_grows_when_a_questions_sequences_agree() -> None:
    rng = np.random.default_rng(0)
    questions = rng.integers(0, 2, size=(1, 500))
    alone = clustered_stderr(questions, np.arange(500))[0]
    assert alone == pytest.approx(questions.std(ddof=1) / np.sqrt(500), rel=1e-6)
    doubled = clustered_stderr(np.repeat(questions, 2, axis=1), np.repeat(np.arange(500), 2))[0]
    assert doubled == pytest.approx(alone, rel=1e-6)  # the same answers twice are no more evidence


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solver": "svm"}, "unknown solver 'svm': expected one of adamw, newton"),
        ({"split": "token"}, "unknown split 'token': expected question or sequence"),
        ({"folds": 0}, "folds=0"),
        ({"folds": 100}, "60 questions cannot be divided into 100 parts"),
        ({"lr": 1.0, "solver": "newton"}, "solver newton has no setting lr: it has c, tol, max_iter"),
        ({"labels": np.ones(120, dtype=int)}, "sequences of both labels"),
        ({"labels": np.zeros(3, dtype=int)}, "120 activations, 3 labels and 120 groups"),
    ],
)
def test_every_mistake_is_one_line(change: dict, message: str) -> None:
    x, labels, groups = pairs()
    arguments = {"activations": x, "labels": labels, "groups": groups, **change}
    with pytest.raises(ProbeError, match=message):
        probe_heads(**arguments)


def test_bad_activations_name_their_head() -> None:
    x, labels, groups = pairs()
    x[3, 1, 2, 0] = np.nan
    with pytest.raises(ProbeError, match="layer 1, head 2 has NaN"):
        probe_heads(x, labels, groups)
