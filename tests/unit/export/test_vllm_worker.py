"""A gate in the weights of one vLLM worker, against the same gate folded into the whole projections.

On stand-ins of vLLM's layers, since vLLM cannot be installed beside the tests' torch.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.vllm_stand_ins import (
    Attention,
    Block,
    Fp8LinearMethod,
    Layer,
    LlamaForCausalLM,
    MMEncoderAttention,
    PackingLinearMethod,
    RowParallelLinear,
    Worker,
    make_workers,
)
from torch import nn

from truthgate_eval.errors import GateError
from truthgate_eval.export.vllm_worker import computed_weight, find_projections, read_weight
from truthgate_eval.gating.layer_gate import LayerGate

FEATURES, LAYERS = 8, 3


def projections(bias: bool = True, dtype: torch.dtype = torch.float32) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(FEATURES, FEATURES, bias=bias).to(dtype) for _ in range(LAYERS)]


def gates(site: Any = "post", shift: bool = False) -> list[LayerGate]:
    torch.manual_seed(1)
    return [
        LayerGate(site, 1 + torch.randn(FEATURES), torch.randn(FEATURES) if shift else None)
        for _ in range(LAYERS)
    ]


def plain_data(parts: list[LayerGate]) -> list[dict[str, Any]]:
    return [
        {
            "layer": number,
            "factors": part.factors.tolist(),
            "shift": None if part.shift is None else part.shift.tolist(),
        }
        for number, part in enumerate(parts)
    ]


def folded(parts: list[LayerGate], full: list[nn.Linear]) -> list[nn.Linear]:
    """The oracle: the gate folded into whole `nn.Linear`, as `gating.gate.fold` does."""
    found = copy.deepcopy(full)
    for part, module in zip(parts, found, strict=True):
        part.fold(module)
    return found


def layer_modules(worker: Worker) -> dict[int, Any]:
    model = worker.model_runner.get_model()
    return {number: module for number, (_, module) in find_projections(model, range(LAYERS)).items()}


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("tp_size", [1, 2, 4])
def test_the_ranks_shards_make_up_the_whole_fold(
    tp_size: int, site: str, dtype: torch.dtype, packs: bool
) -> None:
    full, parts = projections(dtype=dtype), gates(site)
    workers = make_workers(full, tp_size=tp_size, packs=packs)
    for worker in workers:
        assert "error" not in worker.truthgate_fold(site, plain_data(parts))
    for number, expected in enumerate(folded(parts, full)):
        shards = [layer_modules(worker)[number] for worker in workers]
        assert torch.equal(torch.cat([computed_weight(shard) for shard in shards], dim=1), expected.weight)
        assert all(torch.equal(shard.bias, expected.bias) for shard in shards)


def test_weights_change_in_place_and_packed_ones_are_packed_again() -> None:
    [plain], [packed] = make_workers(projections()), make_workers(projections(), packs=True)
    modules = layer_modules(plain)
    addresses = [module.weight.data_ptr() for module in modules.values()]
    for worker in (plain, packed):
        worker.truthgate_fold("post", plain_data(gates()))
    assert [module.weight.data_ptr() for module in modules.values()] == addresses
    for module in layer_modules(packed).values():
        assert module.weight.numel() == 0 and read_weight("w", module).shape == (FEATURES, FEATURES)


def test_merged_projections_and_feed_forward_blocks_are_left_alone() -> None:
    [worker] = make_workers(projections())
    model = worker.model_runner.get_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    worker.truthgate_fold("post", plain_data(gates()))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {
        f"model.layers.{n}.self_attn.o_proj.{p}" for n in range(LAYERS) for p in ("weight", "bias")
    }


def test_a_pipeline_stage_folds_the_layers_that_it_has() -> None:
    first, second = make_workers(projections(), pp_size=2)
    reports = [worker.truthgate_fold("pre", plain_data(gates("pre"))) for worker in (first, second)]
    assert [[layer["layer"] for layer in report["layers"]] for report in reports] == [[0], [1, 2]]
    assert reports[1]["layers"][0]["name"] == "model.layers.1.self_attn.o_proj"


def test_a_shift_goes_into_the_bias() -> None:
    full, parts = projections(), gates("pre", shift=True)
    [worker] = make_workers(full)
    worker.truthgate_fold("pre", plain_data(parts))
    for number, expected in enumerate(folded(parts, full)):
        module = layer_modules(worker)[number]
        assert torch.equal(module.bias, expected.bias) and torch.equal(module.weight, expected.weight)


def test_the_report_says_what_changed_and_reading_back_gives_the_same_digests() -> None:
    [worker] = make_workers(projections())
    before = worker.truthgate_read_back(range(LAYERS))["layers"]
    report = worker.truthgate_fold("post", plain_data(gates()))
    after = worker.truthgate_read_back(range(LAYERS))["layers"]
    assert report["tp_size"] == report["pp_size"] == 1
    assert all(layer["change"] > 0.1 for layer in report["layers"])
    assert [layer["sha256"] for layer in report["layers"]] == [layer["sha256"] for layer in after]
    assert not {layer["sha256"] for layer in before} & {layer["sha256"] for layer in after}


class _StuckMethod(PackingLinearMethod):
    """Packs once, and computes with that for ever."""

    def process_weights_after_loading(self, layer: Any) -> None:
        if not hasattr(layer, "cpu_linear"):
            super().process_weights_after_loading(layer)
        layer.weight = nn.Parameter(torch.empty(0), requires_grad=False)


_StuckMethod.__name__ = "UnquantizedLinearMethod"


def one_layer(method: Any = None, bias: bool = True, tp_size: int = 1, mode: int = 0) -> Worker:
    projection = RowParallelLinear(projections(bias)[0], 0, tp_size, method)
    return Worker(LlamaForCausalLM([Block(projection)]), tp_size, mode=mode)


@pytest.mark.parametrize(
    ("worker", "shift", "message"),
    [
        (one_layer(_StuckMethod()), False, "does not compute with the gate"),
        (one_layer(PackingLinearMethod(), mode=3), False, "enforce_eager=True"),
        (one_layer(Fp8LinearMethod()), False, "is quantized (Fp8LinearMethod)"),
        (one_layer(bias=False), True, "a shift folds into the bias"),
        (one_layer(tp_size=2), True, "a shift folds into the bias"),
    ],
)
def test_what_cannot_be_folded_is_refused_in_one_line(worker: Worker, shift: bool, message: str) -> None:
    site: Any = "pre" if shift else "post"
    before = computed_weight(layer_modules(worker)[0])
    report = worker.truthgate_fold(site, plain_data(gates(site, shift))[:1])
    assert message in report["error"] and "\n" not in report["error"] and "layers" not in report
    assert torch.equal(computed_weight(layer_modules(worker)[0]), before)


def test_a_gate_of_other_features_is_refused() -> None:
    layer = {"layer": 0, "factors": [1.0] * 6, "shift": None}
    assert "has 8 features at site=post, the gate 6" in one_layer().truthgate_fold("post", [layer])["error"]


def test_a_lora_adapter_around_the_projection_is_refused() -> None:
    wrapper = nn.Module()
    wrapper.base_layer = RowParallelLinear(projections()[0])
    worker = Worker(LlamaForCausalLM([Block(wrapper)]))
    assert "LoRA" in worker.truthgate_fold("post", plain_data(gates())[:1])["error"]


def test_a_vision_tower_is_not_found_and_layers_without_a_gate_are_left_alone() -> None:
    model = LlamaForCausalLM([Block(RowParallelLinear(full)) for full in projections()])
    model.visual = nn.ModuleList([Layer(Block(RowParallelLinear(projections()[0]), MMEncoderAttention()))])
    found = find_projections(model, [1])
    assert {number: name for number, (name, _) in found.items()} == {1: "model.layers.1.self_attn.o_proj"}


def test_a_block_with_two_projections_or_none_is_refused() -> None:
    block = Block(RowParallelLinear(projections()[0]))
    block.gate_proj = RowParallelLinear(projections()[0])
    with pytest.raises(
        GateError, match=r"has model.layers.0.self_attn.o_proj, model.layers.0.self_attn.gate_proj"
    ):
        find_projections(LlamaForCausalLM([block]), [0])
    with pytest.raises(GateError, match="has none"):
        find_projections(LlamaForCausalLM([Block(nn.Identity())]), [0])


def test_two_attention_blocks_in_a_layer_are_refused() -> None:
    model = LlamaForCausalLM([Block(RowParallelLinear(projections()[0]))])
    model.model.layers[0].cross_attn = Block(RowParallelLinear(projections()[0]), Attention())
    with pytest.raises(GateError, match="should have one output projection"):
        find_projections(model, [0])
