"""Truth scores against scikit-learn, and against the released code's procedure written out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold
from torch import nn

from truthgate_eval.errors import ProbeError
from truthgate_eval.probing.config import ProbeConfig
from truthgate_eval.probing.cross_validation import (
    ProbeResult,
    cross_validate_heads,
    cross_validate_label_sets,
)
from truthgate_eval.probing.folds import make_folds
from truthgate_eval.probing.statistics import auroc, auroc_influence, clustered_stderr, influence_stderr


def pairs(n: int = 120, layers: int = 2, heads: int = 3, width: int = 6, signal: float = 0.6, seed: int = 0):
    """Correlated features with a signal; two sequences, one of each label, to a question."""
    rng = np.random.default_rng(seed)
    labels = np.tile([1, 0], n // 2)
    x = rng.normal(size=(n, layers, heads, width)) @ rng.normal(size=(width, width))
    x += signal * (2 * labels - 1)[:, None, None, None] * rng.normal(size=(layers, heads, width))
    return x.astype(np.float32), labels, np.repeat(np.arange(n // 2), 2)


def same(first: ProbeResult, second: ProbeResult, atol: float = 0.0) -> None:
    for name in ("scores", "stderr", "auroc", "train_accuracy", "probe_weight", "probe_bias"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=0, atol=atol)


def their_procedure(x: np.ndarray, y: np.ndarray) -> float:
    """`docs/method.md#what-the-released-code-does`, for one head: five folds of sequences, seed 42, AdamW, batches of 512."""
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


@pytest.mark.parametrize("n", [300, pytest.param(700, marks=pytest.mark.slow)])  # 700: two batches of 512
def test_adamw_with_sequence_folds_is_the_released_codes_procedure(n: int) -> None:
    x, labels, groups = pairs(n=n, layers=1, heads=3, signal=0.3)
    found = cross_validate_heads(
        x, labels, groups, ProbeConfig(solver="adamw", folds=5, split="sequence", seed=42)
    )
    expected = [their_procedure(x[:, 0, head], labels) for head in range(3)]
    np.testing.assert_allclose(found.scores[0], expected, atol=1e-3)
    assert len(set(expected)) == 3 and min(expected) < 0.9  # different heads, not all of them certain


@pytest.mark.parametrize("shape", [(120, 2, 3, 6), (60, 1, 4, 50), (466, 1, 4, 64)])
@pytest.mark.parametrize("outlier", [1.0, 1000.0])
def test_newtons_scores_are_scikit_learns(shape: tuple[int, int, int, int], outlier: float) -> None:
    order = np.random.default_rng(1).permutation(shape[0])  # a question's sequences stand anywhere
    x, labels, groups = (array[order] for array in pairs(*shape, signal=0.5))
    x[..., 0] *= outlier
    found = cross_validate_heads(x, labels, groups, ProbeConfig(solver="newton"))
    for layer, head in np.ndindex(found.scores.shape):
        scores, aurocs, trained, right = [], [], [], np.empty(len(x))
        features = x[:, layer, head].astype(np.float64)
        for train, validation in make_folds(groups):
            reference = LogisticRegression(tol=1e-9, max_iter=10000, solver="newton-cholesky")
            reference.fit(features[train], labels[train])
            scores.append(reference.score(features[validation], labels[validation]))
            trained.append(reference.score(features[train], labels[train]))
            aurocs.append(
                roc_auc_score(labels[validation], reference.decision_function(features[validation]))
            )
            right[validation] = reference.predict(features[validation]) == labels[validation]
        assert found.scores[layer, head] == pytest.approx(np.mean(scores), abs=1e-6)
        assert found.train_accuracy[layer, head] == pytest.approx(np.mean(trained), abs=1e-6)
        assert found.auroc[layer, head] == pytest.approx(np.mean(aurocs), abs=1e-6)
        residual = right - right.mean()
        sums = np.array([residual[groups == group].sum() for group in np.unique(groups)])
        variance = len(sums) / (len(sums) - 1) * (sums**2).sum() / len(x) ** 2
        assert found.stderr[layer, head] == pytest.approx(np.sqrt(variance), rel=1e-5)


@pytest.mark.parametrize("solver", ["newton", "adamw"])
def test_a_planted_signal_is_found_and_noise_is_chance(solver: str) -> None:
    x, labels, groups = pairs(n=400, signal=0.0)
    x[:, 1, 2, 3] += 3.0 * (2 * labels - 1) * np.abs(x[:, 1, 2, 3]).mean()
    result = cross_validate_heads(x, labels, groups, ProbeConfig(solver=solver))
    noise = np.delete(result.scores.ravel(), 5)
    assert result.scores[1, 2] > 0.9 and result.auroc[1, 2] > 0.95
    assert np.abs(noise - 0.5).max() < 0.12 and abs(noise.mean() - 0.5) < 0.05
    shuffled = np.random.default_rng(1).permutation(labels)
    assert (
        abs(cross_validate_heads(x, shuffled, groups, ProbeConfig(solver=solver)).scores[1, 2] - 0.5) < 0.12
    )


def test_a_question_that_gives_itself_away_does_not_help_by_question() -> None:
    """Each question has its own direction: known from one of its sequences, useless for another's."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 4)
    secret = rng.integers(0, 2, size=100)[groups]  # all of a question's sequences share their label
    x = np.eye(100, dtype=np.float32)[groups][:, None, None, :] * 50
    by_sequence = cross_validate_heads(
        x, secret, groups, ProbeConfig(solver="newton", split="sequence")
    ).scores[0, 0]
    by_question = cross_validate_heads(
        x, secret, groups, ProbeConfig(solver="newton", split="question")
    ).scores[0, 0]
    assert by_sequence > 0.95 and by_question < 0.7


@pytest.mark.parametrize("solver", ["newton", "adamw"])
def test_the_same_call_gives_the_same_arrays_whatever_the_blocks(
    solver: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    x, labels, groups = pairs()
    whole = cross_validate_heads(x, labels, groups, ProbeConfig(solver=solver))
    same(whole, cross_validate_heads(x, labels, groups, ProbeConfig(solver=solver)))
    np.save(tmp_path / "x.npy", x)
    monkeypatch.setattr("truthgate_eval.probing.solvers._BLOCK_BYTES", {"cpu": 1})
    done: list[int] = []
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    same(
        whole,
        cross_validate_heads(
            mapped, labels.tolist(), groups, ProbeConfig(solver=solver), progress=done.append
        ),
        atol=1e-4,
    )
    assert done == [1] * 6
    same(
        whole,
        cross_validate_heads(torch.from_numpy(x), labels, groups, ProbeConfig(solver=solver)),
        atol=1e-4,
    )


@pytest.mark.parametrize("solver", ["newton", "adamw"])
def test_several_labels_fitted_together_are_each_fitted_alone(solver: str) -> None:
    x, labels, groups = pairs()
    sets, seeds = [labels, 1 - labels, np.roll(labels, 1)], [3, 4, 3]
    together = cross_validate_label_sets(x, sets, groups, ProbeConfig(solver=solver), seeds=seeds)
    for found, truth, seed in zip(together, sets, seeds, strict=True):
        alone = cross_validate_heads(x, truth, groups, ProbeConfig(seed=seed, solver=solver))
        same(found, alone)
        assert found.settings == alone.settings


def test_the_kept_probes_are_fitted_on_everything() -> None:
    x, labels, groups = pairs()
    result = cross_validate_heads(x, labels, groups, ProbeConfig(solver="newton", settings={"C": 0.5}))
    reference = LogisticRegression(C=0.5, tol=1e-9, max_iter=1000).fit(x[:, 1, 2].astype(float), labels)
    np.testing.assert_allclose(result.probe_weight[1, 2], reference.coef_[0], rtol=1e-3)
    assert result.probe_bias[1, 2] == pytest.approx(reference.intercept_[0], rel=1e-3, abs=1e-5)
    assert result.probe_weight.shape == x.shape[1:] and result.probe_weight.dtype == np.float32


def test_one_split_is_four_to_one() -> None:
    x, labels, groups = pairs()
    ((train, validation),) = make_folds(groups, folds=1)
    result = cross_validate_heads(x, labels, groups, ProbeConfig(folds=1, solver="newton"))
    reference = LogisticRegression(tol=1e-8, max_iter=1000).fit(x[train, 0, 0], labels[train])
    assert result.scores[0, 0] == pytest.approx(reference.score(x[validation, 0, 0], labels[validation]))


def test_a_fold_validated_on_one_label_leaves_the_auroc_to_the_others() -> None:
    x, labels, groups = pairs(n=40)
    groups = np.arange(40)
    labels = np.zeros(40, dtype=int)
    labels[make_folds(groups)[0][1]] = [1, 0, 1, 0, 1, 0, 1, 0]
    labels[make_folds(groups)[1][1][:3]] = 1
    result = cross_validate_heads(x, labels, groups, ProbeConfig(solver="newton"))
    assert np.isfinite(result.auroc).all() and np.isfinite(result.scores).all()
    (train, _), *_ = make_folds(groups, folds=1)
    labels[:] = 0
    labels[train[:20]] = 1
    assert np.isnan(
        cross_validate_heads(x, labels, groups, ProbeConfig(folds=1, solver="newton")).auroc
    ).all()


def test_the_settings_say_how_and_on_what() -> None:
    x, labels, groups = pairs()
    found = cross_validate_heads(
        x, labels, groups, ProbeConfig(solver="adamw", folds=2, seed=7, settings={"epochs": 3})
    ).settings
    assert json.loads(json.dumps(found)) == {
        "solver": "adamw",
        "lr": 0.01,
        "weight_decay": 0.001,
        "epochs": 3,
        "batch_size": 512,
        "folds": 2,
        "split": "question",
        "seed": 7,
        "sequences": 120,
        "groups": 60,
        "class_balance": 0.5,
    }


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
        ({"score": "f1"}, "unknown score 'f1': expected one of accuracy, auroc, context-gain"),
        ({"seeds": 0}, "seeds=0: expected 1 or more"),
        ({"folds": 0}, "folds=0: expected 1"),
        ({"seed": -1}, "seed=-1: expected 0 to"),
        ({"seed": 2**32 - 1, "seeds": 2}, "seed=4294967296: expected 0 to"),
        ({"solver": "svm"}, "unknown solver 'svm': expected one of adamw, newton"),
        ({"split": "token"}, "unknown split 'token': expected one of question, sequence"),
        ({"folds": 100}, "60 questions cannot be divided into 100 parts"),
        (
            {"settings": {"lr": 1.0}, "solver": "newton"},
            "solver newton has no setting lr: it has C, tol, max_iter",
        ),
        ({"settings": {"C": -1.0}, "solver": "newton"}, "C=-1.0: expected a positive float"),
        ({"settings": {"epochs": 1.5}}, "epochs=1.5: expected a positive int"),
        ({"settings": {"lr": float("nan")}}, "lr=nan: expected a positive float"),
        ({"labels": np.ones(120, dtype=int)}, r"both labels, 0 and 1; the labels are \[1\]"),
        ({"labels": np.arange(120) % 3}, r"both labels, 0 and 1; the labels are \[0, 1, 2\]"),
        ({"labels": np.zeros(3, dtype=int)}, r"120 activations, labels of shape \(3,\)"),
        ({"activations": np.zeros((120, 6))}, r"activations have shape \(120, 6\), expected"),
        ({"labels": np.arange(120) == 0, "groups": np.arange(120)}, r"fold \d have label 0"),
    ],
)
def test_every_mistake_is_one_line(change: dict, message: str) -> None:
    x, labels, groups = pairs()
    data = {"activations": x, "labels": labels, "groups": groups}
    data |= {name: change[name] for name in data.keys() & change.keys()}
    options = {name: value for name, value in change.items() if name not in data}
    with pytest.raises(ProbeError, match=message):
        cross_validate_heads(**data, config=ProbeConfig(**options))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_activations_name_their_head_before_anything_is_fitted(value: float) -> None:
    x, labels, groups = pairs()
    x[100, 1, 2, 0] = value
    done: list[int] = []
    with pytest.raises(ProbeError, match="layer 1, head 2 has NaN or infinite"):
        cross_validate_heads(torch.from_numpy(x), labels, groups, progress=done.append)
    assert not done


def test_the_error_of_the_auroc_is_delongs_and_clusters_count_once() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, size=300)
    logits = rng.normal(size=(2, 300)).round(1) + labels
    influence = auroc_influence(logits, labels)
    alone = influence_stderr(influence, np.arange(300))
    below = (logits[:, labels == 1][:, :, None] > logits[:, labels == 0][:, None, :]) + 0.5 * (
        logits[:, labels == 1][:, :, None] == logits[:, labels == 0][:, None, :]
    )
    true, false = below.mean(axis=2), below.mean(axis=1)
    delong = true.var(axis=1, ddof=1) / true.shape[1] + false.var(axis=1, ddof=1) / false.shape[1]
    np.testing.assert_allclose(alone, np.sqrt(delong), rtol=0.01)
    np.testing.assert_allclose(influence.sum(axis=1), 0, atol=1e-9)
    twice = auroc_influence(np.repeat(logits, 2, axis=1), np.repeat(labels, 2))
    np.testing.assert_allclose(influence_stderr(twice, np.repeat(np.arange(300), 2)), alone, rtol=1e-9)


def test_the_error_of_the_auroc_is_its_spread_over_data() -> None:
    found = []
    for seed in range(30):
        _, labels, groups = pairs(n=200)
        x = np.random.default_rng(seed).normal(size=(200, 1, 2, 3)) + 0.4 * labels[:, None, None, None]
        found.append(cross_validate_heads(x, labels, groups, ProbeConfig(solver="newton")))
    spread = np.std([result.auroc for result in found])
    mean = np.mean([result.auroc_stderr for result in found])
    assert 0.7 * spread < mean < 1.3 * spread
