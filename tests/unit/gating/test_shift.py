"""ITI's shift against a computation of our own, one head at a time; folded against live."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_models as factories
from torch import nn
from torch.nn import functional

from truthgate_eval.errors import GateError
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate import Gate, attach, fold
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.gating.shift import HeadShift, shift_gate

ALPHA, TOP = 15.0, 5


def artifact(width: int = 8, **metadata: Any) -> TruthScores:
    rng = np.random.default_rng(0)
    return TruthScores(
        rng.uniform(0.4, 0.9, size=(3, 4)),
        probe_weight=rng.normal(size=(3, 4, width)),
        activation_std=rng.uniform(0.05, 0.2, size=(3, 4)),
        mean_difference=rng.normal(size=(3, 4, width)),
        mean_difference_std=rng.uniform(0.05, 0.2, size=(3, 4)),
        metadata={"site": "pre", **metadata},
    )


class ShiftedFromScratch(nn.Module):
    """W_o(x + alpha * sigma * theta / |theta|) for the chosen heads of one layer, one head at a time."""

    def __init__(self, base: nn.Module, shifts: dict[int, tuple[float, np.ndarray]], heads: int) -> None:
        super().__init__()
        self.base, self.shifts, self.heads = base, shifts, heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pieces = list(x.chunk(self.heads, dim=-1))
        for head, (sigma, theta) in self.shifts.items():
            unit = torch.tensor(theta / np.sqrt((theta**2).sum()), dtype=torch.float32)
            pieces[head] = (pieces[head].float() + ALPHA * sigma * unit).to(x.dtype)
        x = torch.cat(pieces, dim=-1)
        if isinstance(self.base, nn.Linear):
            return functional.linear(x, self.base.weight, self.base.bias)
        flat = torch.addmm(self.base.bias, x.reshape(-1, x.shape[-1]), self.base.weight)  # Conv1D
        return flat.reshape(*x.shape[:-1], -1)


def shifted_from_scratch(name: str, scores: TruthScores, directions: np.ndarray, std: np.ndarray) -> Any:
    model = factories.tiny_model(name)
    layout = find_attention_layout(model)
    ranked = sorted(np.ndindex(3, 4), key=lambda at: -scores.scores[at])[:TOP]
    for layer, projection in enumerate(layout.projections):
        own = {head: (float(std[at]), directions[at]) for at in ranked for row, head in [at] if row == layer}
        path, _, attribute = projection.name.rpartition(".")
        module = ShiftedFromScratch(projection.module, own, 4)
        setattr(layout.decoder.get_submodule(path), attribute, module)
    return model


def generate(model: Any) -> torch.Tensor:
    tokens = factories.prompts()
    return model.generate(
        input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=8, min_new_tokens=8,
        do_sample=False,
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["live", "folded"])
@pytest.mark.parametrize("direction", ["probe", "means"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_the_shift_is_itis_in_prefill_and_decoding(name: str, direction: str, mode: str) -> None:
    model = factories.tiny_model(name)
    scores = artifact(16 if name == "qwen3" else 8)
    vanilla = model(factories.prompts()).logits
    gate = shift_gate(scores, HeadShift(TOP, ALPHA, direction))
    (attach if mode == "live" else fold)(model, gate)
    arrays = (
        (scores.probe_weight, scores.activation_std)
        if direction == "probe"
        else (scores.mean_difference, scores.mean_difference_std)
    )
    expected = shifted_from_scratch(name, scores, *arrays)
    shifted = model(factories.prompts()).logits
    assert not torch.allclose(vanilla, shifted, atol=1e-2)
    torch.testing.assert_close(shifted, expected(factories.prompts()).logits, atol=1e-5, rtol=1e-4)
    assert torch.equal(generate(model), generate(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", factories.CONFIGS)
def test_a_folded_shift_equals_the_live_one(name: str, dtype: torch.dtype) -> None:
    """Also with factors at the same site: the shift is added after them."""
    live, folded = factories.tiny_model(name, dtype), factories.tiny_model(name, dtype)
    width = find_attention_layout(live).head_width("pre")
    rng = np.random.default_rng(1)
    gate = Gate(rng.uniform(0, 2, size=(3, 4)), "pre", shift=rng.normal(size=(3, 4, width)))
    attach(live, gate)
    fold(folded, gate)
    found, expected = folded(factories.prompts()).logits, live(factories.prompts()).logits
    if dtype == torch.float32:
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    else:  # no worse than bfloat16 itself: rounded weights differ from rounded products
        error = (found.float() - expected.float()).abs().mean() / expected.float().abs().mean()
        assert error < 0.05


def test_a_projection_without_a_bias_gets_one_and_its_config_says_nothing_of_it() -> None:
    model = factories.tiny_model("llama")
    assert model.model.layers[0].self_attn.o_proj.bias is None
    weight = model.model.layers[0].self_attn.o_proj.weight.clone()
    shift = np.random.default_rng(0).normal(size=(3, 4, 8)).astype(np.float32)
    fold(model, Gate(np.ones((3, 4)), "pre", shift=shift))
    projection = model.model.layers[0].self_attn.o_proj
    torch.testing.assert_close(projection.bias, weight @ torch.from_numpy(shift[0].ravel()))
    assert torch.equal(projection.weight, weight) and model.config.attention_bias is False


def test_only_the_given_layers_are_ranked_and_heads_of_equal_score_come_in_order() -> None:
    scores = dataclasses.replace(artifact(), scores=np.array([[1.0] * 4, [0.5, 0.7, 0.7, 0.7], [1.0] * 4]))
    added = shift_gate(scores, HeadShift(2, 1.0), layers=[1]).shift
    assert added is not None
    assert np.argwhere(np.abs(added).sum(axis=2)).tolist() == [[1, 1], [1, 2]]
    std = scores.activation_std
    assert std is not None
    np.testing.assert_allclose(np.linalg.norm(added[1, 1]), std[1, 1], rtol=1e-5)


def without(name: str) -> TruthScores:
    return dataclasses.replace(artifact(), **{name: None})


def with_zero_direction() -> TruthScores:
    scores = artifact()
    assert scores.probe_weight is not None
    weight = scores.probe_weight.copy()
    weight[np.unravel_index(scores.scores.argmax(), (3, 4))] = 0
    return dataclasses.replace(scores, probe_weight=weight)


@pytest.mark.parametrize(
    ("scores", "shift", "message"),
    [
        (artifact(site="post"), HeadShift(2, 1.0), "probed at site=pre, these were at post: make them with"),
        (artifact(site=None), HeadShift(2, 1.0), "these were at no known site"),
        (without("probe_weight"), HeadShift(2, 1.0), "direction=probe needs the scores' probe_weight, which"),
        (without("activation_std"), HeadShift(2, 1.0), "direction=probe needs the scores' activation_std"),
        (without("mean_difference"), HeadShift(2, 1.0, "means"), "needs the scores' mean_difference, which"),
        (without("mean_difference_std"), HeadShift(2, 1.0, "means"), "the scores' mean_difference_std"),
        (artifact(), HeadShift(13, 1.0), "top=13 is more than the 12 heads"),
        (with_zero_direction(), HeadShift(2, 1.0), r"the probe direction of layer \d, head \d has no length"),
    ],
)  # fmt: skip
def test_scores_without_directions_are_refused(scores: TruthScores, shift: HeadShift, message: str) -> None:
    with pytest.raises(GateError, match=message) as caught:
        shift_gate(scores, shift)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top": 0, "alpha": 1.0}, "top=0 shifts no heads"),
        ({"top": 1, "alpha": float("nan")}, "alpha=nan is not a finite number"),
        ({"top": 1, "alpha": 1.0, "direction": "random"}, "unknown direction 'random': expected one of probe, means"),
    ],
)  # fmt: skip
def test_a_shift_that_does_not_exist_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(GateError, match=message):
        HeadShift(**values)


def test_a_gates_shift_fits_its_site_and_the_model() -> None:
    ones, shift = np.ones((3, 4)), np.zeros((3, 4, 8))
    with pytest.raises(GateError, match="use site=pre"):
        Gate(ones, "post", shift=shift)
    with pytest.raises(
        GateError, match=r"finite \[layers, heads, width\] array for \(3, 4\) heads, got \(3, 5, 8\)"
    ):
        Gate(ones, "pre", shift=np.zeros((3, 5, 8)))
    with pytest.raises(GateError, match=r"finite \[layers, heads, width\]"):
        Gate(ones, "pre", shift=shift * np.nan)
    model = factories.tiny_model("llama")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(GateError, match="the shift's heads have 9 features, this model's have 8"):
        fold(model, Gate(ones, "pre", shift=np.zeros((3, 4, 9))))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_arrays_of_a_shift_are_saved_and_loaded(tmp_path: Any) -> None:
    scores = artifact()
    loaded = TruthScores.load(scores.save(tmp_path / "a.npz"))
    for name in ("activation_std", "mean_difference", "mean_difference_std"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(scores, name))
