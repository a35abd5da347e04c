"""A gate folded into all workers of a vLLM engine, on stand-ins (`helpers.vllm_stand_ins` says why)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_models import tiny_model
from helpers.vllm_stand_ins import LLM, RowParallelLinear, make_workers
from torch import nn

from truthgate_eval.errors import GateError, ModelError
from truthgate_eval.export.vllm_engine import check_coverage, fold_into_engine, gate_data
from truthgate_eval.export.vllm_worker import computed_weight
from truthgate_eval.gating.attention_layout import AttentionLayout, find_attention_layout
from truthgate_eval.gating.gate import Gate, fold, random_gate


def tiny() -> tuple[Any, AttentionLayout]:
    model = tiny_model("llama")
    return model, find_attention_layout(model)


def engine(layout: AttentionLayout, **sizes: Any) -> LLM:
    return LLM(make_workers([projection.module for projection in layout.projections], **sizes))  # type: ignore[misc]


def weights(llm: LLM) -> list[torch.Tensor]:
    return [
        computed_weight(module)
        for worker in llm.workers
        for name, module in worker.model_runner.get_model().named_modules()
        if name.endswith("o_proj")
    ]


@pytest.mark.parametrize("site", ["post", "pre"])
def test_workers_get_the_weights_of_the_model_that_is_folded_in_memory(site: Any) -> None:
    model, layout = tiny()
    gate = random_gate(layout.shape, seed=1, site=site)
    llm = engine(layout, tp_size=2, pp_size=3)
    fold_into_engine(llm, gate, layout)
    fold(model, gate, layout=layout)
    for layer, projection in enumerate(layout.projections):
        shards = weights(llm)[2 * layer : 2 * layer + 2]
        assert torch.equal(torch.cat(shards, dim=1), projection.module.weight)
    assert llm.resets == 1  # what was cached before is that of the vanilla model


def test_a_gate_of_ones_changes_nothing_and_is_no_error() -> None:
    _, layout = tiny()
    llm = engine(layout)
    before = weights(llm)
    fold_into_engine(llm, Gate(np.ones(layout.shape, dtype=np.float32)), layout)
    assert all(torch.equal(one, other) for one, other in zip(before, weights(llm), strict=True))


def test_the_gate_reaches_workers_as_exact_plain_data() -> None:
    _, layout = tiny()
    gate = random_gate(layout.shape, seed=3)
    layers = gate_data(gate, layout)
    assert [layer["layer"] for layer in layers] == list(layout.layer_numbers)
    for values, layer in zip(gate.values, layers, strict=True):
        sent = np.asarray(layer["factors"], dtype=np.float32)
        assert np.array_equal(sent, np.repeat(values, len(sent) // len(values)))


def report(*layers: tuple[int, int], tp_size: int = 1, pp_size: int = 1) -> dict[str, Any]:
    return {
        "tp_size": tp_size,
        "pp_size": pp_size,
        "layers": [{"layer": layer, "tp_rank": rank} for layer, rank in layers],
    }


@pytest.mark.parametrize(
    ("reports", "message"),
    [
        ([report((0, 0))], r"layer 1 was gated \[0\] times"),
        ([report((0, 0), (1, 0), (1, 0))], r"layer 1 was gated \[2\] times"),
        ([report((0, 0), (1, 0), tp_size=2), report((0, 1), tp_size=2)], r"layer 1 was gated \[1, 0\] times"),
        ([report((0, 0), (1, 0), tp_size=2)], "1 workers of vLLM answered"),
        ([report((0, 0), (1, 0), (2, 0))], r"not among \[0, 1\]"),
    ],
)
def test_a_layer_that_the_wrong_number_of_workers_folded_is_an_error(
    reports: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        check_coverage(reports, [0, 1])


def test_layers_on_every_rank_and_in_copies_are_right() -> None:
    check_coverage([report((0, 0), tp_size=2, pp_size=2), report((0, 1), tp_size=2, pp_size=2),
                    report((1, 0), tp_size=2, pp_size=2), report((1, 1), tp_size=2, pp_size=2)], [0, 1])  # fmt: skip
    check_coverage([report((0, 0), (1, 0)), report((0, 0), (1, 0))], [0, 1])


def test_a_stage_whose_layers_have_other_numbers_is_an_error() -> None:
    _, layout = tiny()
    llm = engine(layout)
    layers = llm.workers[0].model_runner.get_model().model.layers
    layers.insert(0, nn.Identity())
    with pytest.raises(ModelError, match=r"layer 0 was gated \[0\] times"):
        fold_into_engine(llm, random_gate(layout.shape, seed=1), layout)


def test_a_worker_that_refuses_is_a_gate_error() -> None:
    _, layout = tiny()
    llm = engine(layout, packs=True)
    llm.workers[0].vllm_config.compilation_config.mode = 3
    with pytest.raises(GateError, match="enforce_eager=True"):
        fold_into_engine(llm, random_gate(layout.shape, seed=1), layout)


class _OldWeights(LLM):
    """Computes with what its workers had at first, as a compiled model with constants would."""

    def generate(self, *args: Any, **options: Any) -> list[Any]:
        if not hasattr(self, "_first"):
            self._first = super().generate(*args, **options)
        return self._first


def test_a_model_whose_log_probabilities_do_not_change_is_an_error() -> None:
    _, layout = tiny()
    llm = _OldWeights(engine(layout).workers)
    with pytest.raises(ModelError, match="log-probabilities not at all"):
        fold_into_engine(llm, random_gate(layout.shape, seed=1), layout)


def test_weights_that_change_back_after_the_fold_are_an_error() -> None:
    _, layout = tiny()
    llm = engine(layout)
    call = llm.collective_rpc

    def undo_before_reading(method: str, args: Any) -> Any:
        if method == "truthgate_read_back":
            module = next(
                m
                for m in llm.workers[0].model_runner.get_model().modules()
                if isinstance(m, RowParallelLinear)
            )
            module.weight.data.zero_()
        return call(method, args)

    llm.collective_rpc = undo_before_reading  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="do not have the weights"):
        fold_into_engine(llm, random_gate(layout.shape, seed=1), layout)


def test_an_engine_that_keeps_its_cached_prefixes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _, layout = tiny()
    monkeypatch.setattr(LLM, "reset_prefix_cache", lambda _: False)
    with pytest.raises(ModelError, match="did not forget the prefixes"):
        fold_into_engine(engine(layout), random_gate(layout.shape, seed=1), layout)


def test_a_gate_of_some_positions_is_refused() -> None:
    _, layout = tiny()
    gate = Gate(np.ones(layout.shape, dtype=np.float32), positions="last")
    with pytest.raises(GateError, match="positions=last"):
        fold_into_engine(engine(layout), gate, layout)
