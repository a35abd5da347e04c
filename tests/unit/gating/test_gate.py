"""The gate against the paper's equation, implemented here a second time, head by head."""

from __future__ import annotations

import itertools
import json
import tempfile
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from helpers import tiny_models as factories
from torch import nn
from torch.nn import functional

from truthgate_eval.errors import GateError
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate import Gate, attach, fold, make_gate, random_gate
from truthgate_eval.gating.scores import TruthScores

SITES = ("post", "pre")
DTYPES = (torch.float32, torch.bfloat16)


def some_gate(site: str, seed: int = 0) -> Gate:
    scores = np.random.default_rng(seed).uniform(0.4, 0.9, size=(3, 4))
    return make_gate(scores, lam=3.0, norm="centered", site=site)


class FromScratch(nn.Module):
    """concat_h(g_h * o_h) for `post`, W_o concat_h(g_h * z_h) for `pre`: one head at a time."""

    def __init__(self, base: nn.Module, gates: np.ndarray, site: str) -> None:
        super().__init__()
        self.base, self.gates, self.site = base, gates, site

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        pieces = x.chunk(len(self.gates), dim=-1)
        scaled = [(float(g) * p.float()).to(x.dtype) for g, p in zip(self.gates, pieces, strict=True)]
        return torch.cat(scaled, dim=-1)

    def project(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.base, nn.Linear):
            return functional.linear(x, self.base.weight, self.base.bias)
        flat = torch.addmm(self.base.bias, x.reshape(-1, x.shape[-1]), self.base.weight)  # Conv1D
        return flat.reshape(*x.shape[:-1], -1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.heads(self.project(x)) if self.site == "post" else self.project(self.heads(x))


def gate_from_scratch(model: Any, gate: Gate) -> Any:
    layout = find_attention_layout(model)
    for layer, projection in enumerate(layout.projections):
        path, _, name = projection.name.rpartition(".")
        setattr(
            layout.decoder.get_submodule(path),
            name,
            FromScratch(projection.module, gate.values[layer], gate.site),
        )
    return model


def generate(model: Any, *, use_cache: bool = True) -> torch.Tensor:
    tokens = factories.prompts()
    return model.generate(
        input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=8, min_new_tokens=8,
        do_sample=False, use_cache=use_cache, output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", factories.CONFIGS)
def test_the_gate_is_the_papers_equation_in_prefill_and_decoding(
    name: str, site: str, dtype: torch.dtype
) -> None:
    gate = some_gate(site)
    model = factories.tiny_model(name, dtype)
    vanilla = model(factories.prompts()).logits
    with attach(model, gate):
        gated, decoded = model(factories.prompts()).logits, generate(model)
    reference = gate_from_scratch(factories.tiny_model(name, dtype), gate)
    expected = generate(reference)
    assert not torch.allclose(vanilla, gated, atol=1e-3)  # the gate does something
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(gated, reference(factories.prompts()).logits, atol=tolerance, rtol=tolerance)
    assert torch.equal(decoded.sequences, expected.sequences)
    for ours, theirs in zip(decoded.scores, expected.scores, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", factories.CONFIGS)
def test_the_text_is_the_same_with_and_without_a_key_value_cache(name: str) -> None:
    model = factories.tiny_model(name)
    with attach(model, some_gate("post")):
        assert torch.equal(generate(model).sequences, generate(model, use_cache=False).sequences)


def test_the_residual_stream_is_x_plus_the_gated_attention_output() -> None:
    """Equation 5 itself, on the first layer: x_1 = x_0 + concat_h(g_h * o_h)."""
    model, gate, recorded = factories.tiny_model("llama"), some_gate("post"), {}
    layer = model.model.layers[0]
    layer.register_forward_pre_hook(lambda _, args: recorded.update(x=args[0]))
    layer.post_attention_layernorm.register_forward_pre_hook(lambda _, args: recorded.update(after=args[0]))
    model(factories.prompts())
    x, o = recorded["x"], recorded["after"] - recorded["x"]
    with attach(model, gate):
        model(factories.prompts())
    g = torch.from_numpy(gate.values[0]).repeat_interleave(8)
    torch.testing.assert_close(recorded["after"], x + g * o, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", factories.CONFIGS)
def test_a_folded_gate_equals_the_live_one(name: str, site: str) -> None:
    gate, live, folded = some_gate(site), factories.tiny_model(name), factories.tiny_model(name)
    attach(live, gate)
    fold(folded, gate)
    torch.testing.assert_close(
        live(factories.prompts()).logits, folded(factories.prompts()).logits, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("site", SITES)
def test_the_live_gate_equals_an_ia3_adapter_of_peft(site: str) -> None:
    gate, live, base = some_gate(site), factories.tiny_model("llama"), factories.tiny_model("llama")
    attach(live, gate)
    feedforward = ["o_proj"] if site == "pre" else []
    model = peft.get_peft_model(
        base, peft.IA3Config(target_modules=["o_proj"], feedforward_modules=feedforward)
    )
    for layer, block in enumerate(model.get_decoder().layers):
        vector = torch.from_numpy(gate.values[layer]).repeat_interleave(8)
        adapter = block.self_attn.o_proj.ia3_l["default"]
        adapter.data = vector.reshape(adapter.shape)
    assert torch.equal(live(factories.prompts()).logits, model(factories.prompts()).logits)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("site", SITES)
def test_lam_zero_equals_the_vanilla_model_bit_for_bit(site: str, dtype: torch.dtype) -> None:
    model = factories.tiny_model("qwen2", dtype)
    vanilla = model(factories.prompts()).logits
    scores = np.random.default_rng(0).uniform(size=(3, 4))
    with attach(model, make_gate(scores, lam=0.0, norm="minmax", site=site)):
        assert torch.equal(vanilla, model(factories.prompts()).logits)
    folded = factories.tiny_model("qwen2", dtype)
    fold(folded, make_gate(scores, lam=0.0, norm="minmax", site=site))
    assert torch.equal(vanilla, folded(factories.prompts()).logits)


def test_a_live_gate_can_be_replaced_and_removed() -> None:
    model = factories.tiny_model("llama")
    vanilla = model(factories.prompts()).logits
    with attach(model, some_gate("post", seed=1)) as handle:
        first = model(factories.prompts()).logits
        handle.set(some_gate("pre", seed=2))
        second = model(factories.prompts()).logits
    fresh = factories.tiny_model("llama")
    attach(fresh, some_gate("pre", seed=2))
    assert not torch.equal(first, second)
    assert torch.equal(second, fresh(factories.prompts()).logits)
    assert torch.equal(vanilla, model(factories.prompts()).logits)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_gate_of_another_shape_is_refused_and_the_old_one_stays() -> None:
    model = factories.tiny_model("llama")
    handle = attach(model, some_gate("post"))
    gated = model(factories.prompts()).logits
    with pytest.raises(GateError, match="3 layers x 5 heads, the model 3 x 4"):
        handle.set(Gate(np.ones((3, 5))))
    assert torch.equal(gated, model(factories.prompts()).logits)


def test_the_gate_works_over_a_lora_adapter_and_does_not_fold_into_it() -> None:
    def lora() -> Any:
        config = peft.LoraConfig(target_modules=["o_proj"], r=2, init_lora_weights=False)
        torch.manual_seed(1)
        return peft.get_peft_model(factories.tiny_model("llama"), config).eval()

    gate, live, merged = some_gate("post"), lora(), lora().merge_and_unload()
    attach(live, gate)
    fold(merged, gate)
    torch.testing.assert_close(
        live(factories.prompts()).logits, merged(factories.prompts()).logits, atol=1e-5, rtol=1e-4
    )
    with pytest.raises(GateError, match="merge the adapter first"):
        fold(lora(), gate)


class QuantizedTensor(torch.Tensor):
    """As torchao's: a subclass that says it is floating-point, and cannot be multiplied in place."""


def test_a_weight_in_a_subclass_of_tensor_is_not_folded_into() -> None:
    model = factories.tiny_model("llama")
    projection = model.model.layers[1].self_attn.o_proj
    projection.weight = torch.nn.Parameter(projection.weight.detach().as_subclass(QuantizedTensor))
    before = model.model.layers[0].self_attn.o_proj.weight.clone()
    with pytest.raises(GateError, match=r"layers\.1.*folds only into plain floating-point weights"):
        fold(model, some_gate("post"))
    assert torch.equal(model.model.layers[0].self_attn.o_proj.weight, before)


def test_a_dispatched_model_with_offloaded_layers_is_gated_live() -> None:
    from accelerate import dispatch_model

    gate, expected = some_gate("post"), factories.tiny_model("llama")
    attach(expected, gate)
    device_map = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk",
                  "model.layers.2": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu",
                  "lm_head": "cpu"}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model = dispatch_model(
            factories.tiny_model("llama"), device_map, main_device="cpu", offload_dir=folder
        )
        with pytest.raises(GateError, match=r"layers\.1.* is offloaded"):
            fold(model, gate)
        attach(model, gate)
        torch.testing.assert_close(model(factories.prompts()).logits, expected(factories.prompts()).logits)


@pytest.mark.parametrize("positions", ["all", "last"])
def test_a_compiled_model_sees_that_gates_come_change_and_go(positions: str) -> None:
    model, prompts = factories.tiny_model("llama"), factories.prompts()
    compiled = torch.compile(model, backend="eager")
    gates = [Gate(some_gate("post", seed).values, "post", positions=positions) for seed in (0, 1)]
    seen = []

    def check() -> None:
        seen.append(model(prompts).logits)
        torch.testing.assert_close(compiled(prompts).logits, seen[-1])

    with torch.no_grad():
        try:
            check()
        except torch._dynamo.exc.InternalTorchDynamoError:
            if hasattr(
                torch.compiler, "is_exporting"
            ):  # which transformers 5.20 asks for, and torch 2.6 lacks
                raise
            pytest.skip(
                f"transformers {transformers.__version__} compiles nothing in torch {torch.__version__}"
            )
        with attach(model, gates[0]) as handle:
            check()
            handle.set(gates[1])
            check()
        check()
    assert all((one - other).abs().max() > 0.01 for one, other in itertools.pairwise(seen))


def test_only_the_given_layers_are_gated() -> None:
    scores = np.random.default_rng(0).uniform(size=(3, 4))
    gate = make_gate(scores, lam=1.0, norm="minmax", layers=[1])
    assert (gate.values[[0, 2]] == 1).all() and (gate.values[1] != 1).any()
    with pytest.raises(GateError, match="0 to 2"):
        make_gate(scores, lam=1.0, norm="minmax", layers=[3])


def test_on_the_authors_arrays_the_gates_are_their_formula(shared_data) -> None:
    """`docs/method.md#what-the-released-code-does`: minmax divides by (max - min + 1e-6); centered subtracts the mean."""
    files = sorted((shared_data / "truthprobe" / "scores").iterdir())
    settings = json.loads((shared_data / "truthprobe" / "settings.json").read_text())
    lams = {row["lam"] for rows in settings.values() if isinstance(rows, list) for row in rows}
    assert len(files) == 13 and lams
    for file in files:
        scores = TruthScores.load(file)
        for lam in lams:
            minmax = make_gate(scores, lam=lam, norm="minmax").values
            centered = make_gate(scores, lam=lam, norm="centered").values
            for layer in range(scores.shape[0]):
                row = [float(value) for value in scores.scores[layer]]
                low, high, mean = min(row), max(row), sum(row) / len(row)
                for head, value in enumerate(row):
                    assert abs(minmax[layer, head] - (1 + lam * (value - low) / (high - low + 1e-6))) < 1e-6
                    assert abs(centered[layer, head] - (1 + lam * (value - mean))) < 1e-6


def test_the_random_gate_is_uniform_and_fixed_by_its_seed() -> None:
    gate = random_gate((32, 32), seed=3)
    assert np.array_equal(gate.values, random_gate((32, 32), seed=3).values)
    assert not np.array_equal(gate.values, random_gate((32, 32), seed=4).values)
    draw = gate.values - 1
    assert -1 <= draw.min() < -0.98 and 0.98 < draw.max() <= 1
    assert abs(draw.mean()) < 0.06 and abs(draw.std() - 1 / np.sqrt(3)) < 0.03


def test_lam_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(GateError, match="finite"):
        make_gate(np.ones((3, 4)), lam=float("nan"), norm="minmax")
