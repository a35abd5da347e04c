"""Both solvers, head by head, against scikit-learn and against torch's own AdamW loop."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from truthgate_eval.probing.config import SOLVER_SETTINGS, ProbeConfig
from truthgate_eval.probing.cross_validation import ProbeResult, cross_validate_heads
from truthgate_eval.probing.newton import NewtonBlock
from truthgate_eval.probing.solvers import adamw_block

Data = tuple[np.ndarray, np.ndarray]
Probes = tuple[torch.Tensor, torch.Tensor]
NEWTON, ADAMW = SOLVER_SETTINGS["newton"], SOLVER_SETTINGS["adamw"]


def fit_newton(x: np.ndarray, y: np.ndarray, **settings: float) -> Probes:
    """Probes of features [n, heads, width] on all sequences: weights [heads, width], intercepts [heads]."""
    block = NewtonBlock(torch.from_numpy(x).transpose(0, 1).contiguous())
    weight, bias = block.fit(torch.from_numpy(y), [torch.arange(len(y))], **{**NEWTON, **settings})
    return weight[0], bias[0]


def fit_adamw(x: np.ndarray, y: np.ndarray, **settings: float) -> Probes:
    """As `fit_newton`."""
    block = torch.from_numpy(x).transpose(0, 1).contiguous()
    weight, bias = adamw_block(block, torch.from_numpy(y), [torch.arange(len(y))], **{**ADAMW, **settings})
    return weight[0], bias[0]


def features(n: int = 120, heads: int = 4, width: int = 6, signal: float = 0.5, seed: int = 0) -> Data:
    """Correlated float32 features [n, heads, width], each head with its own mixing and direction."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    mixing = rng.normal(size=(heads, width, width)) * np.exp(-np.arange(width) / 8)[:, None]
    x = np.einsum("nhw,hwv->nhv", rng.normal(size=(n, heads, width)), mixing)
    x += signal * (2 * y - 1)[:, None, None] * rng.normal(size=(heads, width))
    return x.astype(np.float32), y


def changed(change: Callable[[np.ndarray, np.ndarray], None], **shape: float) -> Data:
    x, y = features(**shape)
    change(x, y)
    return x, y


def scale_one(factor: float) -> Callable[[np.ndarray, np.ndarray], None]:
    return lambda x, _: np.multiply(x[..., 3], factor, out=x[..., 3])


CASES: dict[str, Callable[[], Data]] = {
    "plain": features,
    "as wide as a head": lambda: features(n=466, heads=2, width=64, signal=0.1),
    "fewer sequences than features": lambda: features(n=20, width=40),
    "separable": lambda: features(signal=8.0),
    "separable by far": lambda: changed(lambda x, y: x.__iadd__(1e5 * (2 * y - 1)[:, None, None])),
    "one feature a thousand times the others": lambda: changed(scale_one(1e3)),
    "one feature ten million times the others": lambda: changed(scale_one(1e7)),
    "one tiny feature": lambda: changed(scale_one(1e-6)),
    "a constant feature": lambda: changed(lambda x, _: x[..., 2].fill(7.0)),
    "features twice": lambda: changed(lambda x, _: np.copyto(x[..., :3], x[..., 3:])),
    "one label is rare": lambda: (features()[0], (np.arange(120) < 3).astype(int)),
}


def objective(x: np.ndarray, y: np.ndarray, w: np.ndarray, b: float, C: float = 1.0) -> float:
    z = x.astype(np.float64) @ w + b
    return 0.5 * float(w @ w) + C * float(np.logaddexp(0, (1 - 2 * y) * z).sum())


@pytest.mark.filterwarnings("ignore:The inner solver of NewtonCholeskySolver")
@pytest.mark.parametrize("case", CASES)
def test_newton_reaches_scikit_learns_minimum(case: str) -> None:
    x, y = CASES[case]()
    weight, bias = fit_newton(x, y)
    for head in range(x.shape[1]):
        reference = LogisticRegression(C=1.0, tol=1e-10, max_iter=10000, solver="newton-cholesky")
        reference.fit(x[:, head].astype(np.float64), y)
        theirs = objective(x[:, head], y, reference.coef_[0], reference.intercept_[0])
        ours = objective(x[:, head], y, weight[head].numpy(), float(bias[head]))
        assert ours <= theirs + 1e-5  # where they differ by more, scikit-learn says that it stopped short
        if case in ("plain", "as wide as a head"):
            np.testing.assert_allclose(weight[head], reference.coef_[0], rtol=1e-5, atol=1e-7)


def test_newton_takes_the_penalty_given() -> None:
    x, y = features()
    weight, bias = fit_newton(x, y, C=0.01)
    reference = LogisticRegression(C=0.01, tol=1e-10, max_iter=1000).fit(x[:, 1].astype(float), y)
    np.testing.assert_allclose(weight[1], reference.coef_[0], rtol=1e-4)
    assert float(bias[1]) == pytest.approx(reference.intercept_[0], rel=1e-4, abs=1e-6)


def test_newtons_gradient_is_zero_at_the_end_of_every_subset() -> None:
    """Folds start from the whole set's minimum; each must still end in its own."""
    x, y = features(n=200)
    block, truth = torch.from_numpy(x).transpose(0, 1).contiguous(), torch.from_numpy(y)
    subsets = [torch.arange(0, 100), torch.arange(200), torch.arange(60, 200)]
    weight, bias = NewtonBlock(block).fit(truth, subsets, **NEWTON)
    for rows, w, b in zip(subsets, weight, bias, strict=True):
        part = block[:, rows].double()
        residual = torch.sigmoid((part * w[:, None]).sum(2) + b[:, None]) - truth[rows]
        assert (w + (residual[:, :, None] * part).sum(1)).abs().max() < 1e-6
        assert residual.sum(1).abs().max() < 1e-6


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_conjugate_gradients_end_where_newtons_method_does(
    scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = features(n=400, width=16)
    block, truth = torch.from_numpy(scale * x).transpose(0, 1).contiguous(), torch.from_numpy(y)
    subsets = [torch.arange(0, 320), torch.arange(400), torch.arange(80, 400)]
    monkeypatch.setattr("truthgate_eval.probing.newton._MIN_SEQUENCES_PER_FEATURE", 1000)
    expected = NewtonBlock(block).fit(truth, subsets, **NEWTON)
    monkeypatch.undo()
    if scale == 1.0:  # easy enough to leave nothing to Newton's method
        monkeypatch.setattr("truthgate_eval.probing.newton._minimise", None)
    for found, wanted in zip(NewtonBlock(block).fit(truth, subsets, **NEWTON), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-8)


def test_newtons_method_finishes_what_conjugate_gradients_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = features(n=200)
    expected = fit_newton(x, y)
    monkeypatch.setattr("truthgate_eval.probing.newton._CG_STEPS", 2)
    monkeypatch.setattr("truthgate_eval.probing.newton._CG_PRECONDITIONERS", 1)
    for found, wanted in zip(fit_newton(x, y), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-8)


def test_one_gram_matrix_serves_all_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    from truthgate_eval.probing import newton

    x, y = features(n=200)
    sums: list[object] = []
    count = newton._weighted_gram
    monkeypatch.setattr(newton, "_weighted_gram", lambda x, w: sums.append(w) or count(x, w))
    block = newton.NewtonBlock(torch.from_numpy(x).transpose(0, 1).contiguous())
    rows = [torch.arange(200), torch.arange(150)]
    for labels in (y, y[::-1].copy(), np.roll(y, 7)):
        weight, bias = block.fit(torch.from_numpy(labels), rows, **NEWTON)
        alone = fit_newton(x, labels)
        torch.testing.assert_close((weight[0], bias[0]), alone)
    assert sum(weights is None for weights in sums) == 1 + 3  # the block's, and the three alone


def test_newton_says_when_it_stopped_early(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        fit_newton(*features(n=20, width=40), max_iter=1)  # too few sequences for conjugate gradients
    assert "4 probes did not converge in max_iter=1" in caplog.text


@pytest.mark.parametrize("fit", [fit_newton, fit_adamw])
def test_heads_and_features_that_are_zero_get_zero_weights(fit: Callable) -> None:
    x, y = features()
    x[:, 0] = 0  # a head whose output is 0
    x[:, 1, 2] = 0  # a feature that is always 0
    weight, bias = fit(x, y)
    assert torch.isfinite(weight).all() and torch.isfinite(bias).all()
    assert (weight[0] == 0).all() and weight[1, 2] == 0 and (weight[1, :2] != 0).all()


def their_probe(x: np.ndarray, y: np.ndarray, epochs: int, batch_size: int) -> nn.Linear:
    """`docs/method.md#what-the-released-code-does`, for one head."""
    probe = nn.Linear(x.shape[1], 1)
    nn.init.zeros_(probe.weight)
    nn.init.zeros_(probe.bias)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-2, weight_decay=1e-3)
    features, labels = torch.from_numpy(x), torch.from_numpy(y).float()
    for _ in range(epochs):
        for start in range(0, len(x), batch_size):
            optimizer.zero_grad()
            logits = probe(features[start : start + batch_size])[:, 0]
            nn.functional.binary_cross_entropy_with_logits(
                logits, labels[start : start + batch_size]
            ).backward()
            optimizer.step()
    return probe


@pytest.mark.parametrize(("n", "batch_size"), [(120, 512), (120, 120), (120, 50)])
def test_adamw_is_torchs_loop_of_each_head_and_subset(n: int, batch_size: int) -> None:
    """Subsets whose batches differ in number and in place are stepped together, and must not mix."""
    x, y = features(n=n)
    subsets = [np.flatnonzero(np.arange(n) % 5 != k) for k in range(5)] + [
        np.arange(n),
        np.arange(80, 20, -1),
    ]
    options = {"lr": 1e-2, "weight_decay": 1e-3, "epochs": 40, "batch_size": batch_size}
    block = torch.from_numpy(x).transpose(0, 1).contiguous()
    rows = [torch.from_numpy(subset) for subset in subsets]
    weight, bias = adamw_block(block, torch.from_numpy(y), rows, **options)
    for k, subset in enumerate(subsets):
        for head in range(x.shape[1]):
            probe = their_probe(x[subset][:, head], y[subset], 40, batch_size)
            # AdamW's first steps follow a gradient's sign, even one that is 0 but for rounding.
            torch.testing.assert_close(weight[k, head], probe.weight[0].detach(), rtol=1e-3, atol=2e-4)
            torch.testing.assert_close(bias[k, head], probe.bias[0].detach(), rtol=1e-3, atol=2e-4)


def test_adamws_decay_reaches_weights_and_intercepts() -> None:
    x, y = features()
    (free, _), (held, _) = fit_adamw(x, y, weight_decay=0.0), fit_adamw(x, y, weight_decay=10.0)
    assert held.norm() < 0.6 * free.norm()
    ones = np.ones(120, dtype=int)
    ones[0] = 0
    assert fit_adamw(x * 0, ones, weight_decay=10.0)[1][0] < fit_adamw(x * 0, ones, weight_decay=0.0)[1][0]


def kept_probes(result: ProbeResult) -> Probes:
    """Weights [heads, width] and intercepts [heads] of the probes that are fitted on all sequences."""
    weight = torch.from_numpy(result.probe_weight)
    return weight.flatten(0, 1), torch.from_numpy(result.probe_bias).flatten()


@pytest.mark.parametrize("solver", ["newton", "adamw"])
def test_any_layout_type_and_block_gives_the_same_probes(
    solver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ProbeConfig(solver=solver)
    x, y = features(width=8)
    x = x.astype(np.float16).astype(np.float32)
    groups = np.arange(len(y)) // 2
    expected = (fit_newton if solver == "newton" else fit_adamw)(x, y)
    mapped = np.memmap(tmp_path / "x", dtype=np.float16, mode="w+", shape=(120, 2, 2, 8))
    mapped[:] = x.reshape(mapped.shape)
    transposed = torch.from_numpy(x).transpose(0, 1).contiguous().transpose(0, 1)
    done: list[int] = []
    monkeypatch.setattr("truthgate_eval.probing.solvers._BLOCK_BYTES", {"cpu": 3 * 8 * 120 * 8})
    for other in (x[:, None], mapped, torch.from_numpy(x).half()[:, None], transposed[:, None]):
        done.clear()
        result = cross_validate_heads(other, torch.from_numpy(y), groups, config, progress=done.append)
        weight, bias = kept_probes(result)
        assert done == ([3, 1] if other.shape[1] == 1 else [2, 2])  # a block has whole layers, or is in one
        torch.testing.assert_close(weight, expected[0].float(), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(bias, expected[1].float(), rtol=1e-3, atol=1e-5)
    rounded = torch.from_numpy(x).bfloat16()[:, None]
    torch.testing.assert_close(
        kept_probes(cross_validate_heads(rounded, y, groups, config)),
        kept_probes(cross_validate_heads(rounded.float().numpy(), y.astype(bool), groups, config)),
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("solver", ["newton", "adamw"])
def test_a_gpu_gives_the_same_probes(solver: str) -> None:
    config = ProbeConfig(solver=solver)
    x, y = features()
    groups, settings = np.arange(len(y)) // 2, config.solver_settings
    block = torch.from_numpy(x).transpose(0, 1).contiguous().cuda()
    fit = NewtonBlock(block).fit if solver == "newton" else functools.partial(adamw_block, block)
    assert fit(torch.from_numpy(y).cuda(), [torch.arange(len(y)).cuda()], **settings)[0].is_cuda
    expected = kept_probes(cross_validate_heads(x[:, None], y, groups, config))
    for found in (
        cross_validate_heads(x[:, None], y, groups, config, device="cuda"),
        cross_validate_heads(torch.from_numpy(x).cuda()[:, None], y, groups, config),
    ):
        weight, bias = kept_probes(found)
        torch.testing.assert_close(weight, expected[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(bias, expected[1], rtol=1e-3, atol=1e-4)
