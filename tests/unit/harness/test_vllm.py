"""What `gated_vllm` takes and refuses, before vLLM loads anything."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.tiny_models import save_tiny_checkpoint
from helpers.vllm_stand_ins import LLM, make_workers
from transformers import AutoModelForCausalLM, AutoTokenizer

from truthgate_eval.errors import GateError, ModelError, ProcessError, TruthGateError
from truthgate_eval.export.source import ModelSource
from truthgate_eval.export.vllm_engine import WORKER_EXTENSION
from truthgate_eval.export.vllm_worker import GateWorker, computed_weight, find_projections
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.harness import vllm as gated_vllm
from truthgate_eval.harness.vllm import engine_options, make_engine_gate, parse_folded_gate

without_vllm = pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs scores"),
        ({"scores": "random:1", "mode": "live"}, "folds the gate into the weights"),
        ({"scores": "random:1", "positions": "last"}, "positions=last is nothing that weights can hold"),
        ({"scores": "random:1", "lam": "kl:0.05"}, "lam=kl:0.05 is nothing"),
        ({"scores": "none", "yes_offset": 1.5}, "yes_offset=1.5 is nothing"),
        ({"scores": "none", "yes_offset": "kl:0.1"}, "yes_offset=kl:0.1 is nothing"),
        ({"scores": "random:1", "contrast": 0.5}, "has no contrast"),
        ({"scores": "random:1", "site": "middle"}, "site"),
    ],
)
def test_what_weights_cannot_hold_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(GateError, match=message) as refusal:
        parse_folded_gate(arguments, "text")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("mode", [None, "None", "", "folded"])
def test_the_results_file_says_that_the_gate_is_folded(mode: Any) -> None:
    described = parse_folded_gate({"scores": "random:1", "mode": mode, "site": "pre"}, "text").describe()
    assert described["mode"] == "folded" and described["site"] == "pre" and described["kind"] == "random"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_tiny_checkpoint(tmp_path_factory.mktemp("tiny")))


def gate_of(checkpoint: Path, **arguments: Any) -> Any:
    return make_engine_gate(str(checkpoint), {"scores": "random:1", **arguments}, modality="text")


def test_the_gate_is_that_of_the_model_and_goes_into_an_engine(checkpoint: Path) -> None:
    gate = gate_of(checkpoint, site="pre")
    llm = LLM(make_workers([p.module for p in gate.layout.projections], tp_size=2))
    before = _weights(llm)
    gate.fold(llm)
    assert gate.gate.values.shape == gate.layout.shape and (before - _weights(llm)).abs().max() > 0.01


def _weights(llm: LLM) -> Any:
    [(_, module)] = find_projections(llm.workers[1].model_runner.get_model(), [1]).values()
    return computed_weight(module)


def test_a_vanilla_model_is_left_alone(checkpoint: Path) -> None:
    gate = make_engine_gate(str(checkpoint), {"scores": "none"}, modality="text")
    options = {"worker_extension_cls": "mine", "data_parallel_size": 2}
    assert gate.gate is None and engine_options(options, gate) == options
    gate.fold(None)


def test_a_quantized_checkpoint_is_refused_before_it_loads(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    quantized = {**config, "quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(quantized))
    with pytest.raises(ModelError, match="is quantized"):
        gate_of(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"worker_extension_cls": "some.Class"}, "worker_extension_cls=some.Class"),
        ({"quantization": "fp8"}, "quantization=fp8"),
        ({"lora_local_path": "folder"}, "lora_local_path=folder"),
        ({"enable_lora": True}, "enable_lora=True"),
        ({"data_parallel_size": 2}, "data_parallel_size=2"),
        ({"data_parallel_size": "two"}, "data_parallel_size=two"),
    ],
)
def test_options_that_keep_the_gate_out_are_refused(
    checkpoint: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(GateError, match=message):
        engine_options(options, gate_of(checkpoint))


def test_several_processes_are_refused_where_there_is_a_gate(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ProcessError, match="gated_vllm runs in one process"):
        engine_options({}, gate_of(checkpoint))
    vanilla = make_engine_gate(str(checkpoint), {"scores": "none"}, modality="text")
    assert engine_options({}, vanilla) == {}


@pytest.mark.parametrize(
    ("on_cpu", "given", "eager"), [(True, None, True), (True, False, False), (False, None, None)]
)
def test_on_the_cpu_vllm_does_not_compile_unless_asked(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, on_cpu: bool, given: Any, eager: Any
) -> None:
    monkeypatch.setattr(gated_vllm, "_runs_on_cpu", lambda: on_cpu)
    options = {"tensor_parallel_size": 2, "quantization": None, "enable_lora": False}
    found = engine_options(
        {**options, **({} if given is None else {"enforce_eager": given})}, gate_of(checkpoint)
    )
    assert found["worker_extension_cls"] == WORKER_EXTENSION and found["tensor_parallel_size"] == 2
    assert found.get("enforce_eager") == eager


def test_the_workers_extension_is_found_by_its_name_and_adds_two_methods() -> None:
    module, _, name = WORKER_EXTENSION.rpartition(".")
    assert getattr(importlib.import_module(module), name) is GateWorker
    # vLLM refuses an extension whose names its worker class has.
    public = [name for name in dir(GateWorker) if not name.startswith("__")]
    assert public == ["truthgate_fold", "truthgate_read_back"]


@without_vllm
def test_without_vllm_lm_evals_model_is_one_line() -> None:
    from lm_eval.api.registry import get_model

    sys.modules.pop("truthgate_eval.harness.lm_eval.vllm_model", None)
    with pytest.raises(ModelError, match=r"pip install 'truthgate_eval\[vllm\]'"):
        get_model("gated_vllm")


@without_vllm
@pytest.mark.parametrize("force_simple", [False, True])
def test_without_vllm_lmms_evals_models_are_one_line(force_simple: bool) -> None:
    from lmms_eval.models import get_model

    model = get_model("gated_vllm", force_simple=force_simple)
    assert model.is_simple is force_simple
    with pytest.raises(TruthGateError, match=r"pip install 'truthgate_eval\[vllm\]'"):
        model.create_from_arg_string("model=tiny,scores=random:1")


def _load_engine(**options: Any) -> LLM:
    if options.get("seed") == 13:
        raise RuntimeError("Engine core initialization failed. See root cause above.\nand more")
    model = AutoModelForCausalLM.from_pretrained(options["model"], dtype=torch.float32)
    layout = find_attention_layout(model)
    llm: Any = LLM(make_workers([projection.module for projection in layout.projections]))  # type: ignore[misc]
    llm.llm_engine = SimpleNamespace(model_config=SimpleNamespace(dtype=torch.float32))
    return llm


@pytest.fixture
def lm_evals_model(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """`gated_vllm` of lm-eval with a stand-in of vLLM: a function of its arguments."""
    name = "truthgate_eval.harness.lm_eval.vllm_model"
    known = importlib.metadata.version

    def stand_in(name: str, **attributes: Any) -> None:
        module = SimpleNamespace(__spec__=ModuleSpec(name, None), __path__=[], **attributes)
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[misc]

    stand_in("vllm", LLM=_load_engine, SamplingParams=None, TokensPrompt=None, __version__="0.32.0")
    stand_in("vllm.lora")
    stand_in("vllm.lora.request", LoRARequest=lambda *_: None)
    stand_in("vllm.renderers")
    stand_in("vllm.renderers.hf", resolve_chat_template=lambda **_: None)
    stand_in("vllm.tokenizers", get_tokenizer=lambda name, **_: AutoTokenizer.from_pretrained(name))
    stand_in("vllm.engine")
    options = SimpleNamespace(create_model_config=lambda: None)
    stand_in("vllm.engine.arg_utils", EngineArgs=lambda **_: options)
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.32.0" if name == "vllm" else known(name)
    )
    monkeypatch.setattr(gated_vllm, "check_vllm_is_installed", lambda _: None)
    monkeypatch.setattr(gated_vllm, "_runs_on_cpu", lambda: True)
    sys.modules.pop(name, None)
    model = importlib.import_module(name).GatedVLLM
    yield lambda **arguments: model(**{"pretrained": str(checkpoint), "scores": "random:1", **arguments})
    del sys.modules[name]


@without_vllm
def test_a_vanilla_model_may_have_several_engines(
    lm_evals_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(__spec__=ModuleSpec("ray", None)))  # type: ignore[misc]
    model = lm_evals_model(scores="none", data_parallel_size=2)
    assert not hasattr(model, "model") and model.get_model_info()["gate"]["kind"] == "vanilla"


@without_vllm
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 13}, "Engine core initialization failed. See root cause above."),
        ({"max_length": 8, "max_model_len": 8}, "Either max_length or max_model_len"),
        ({"scores": "none", "data_parallel_size": 2}, "ray is required"),
    ],
)
def test_an_engine_that_does_not_start_is_one_line(
    lm_evals_model: Callable[..., Any], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=f"cannot be loaded: .*{message}") as refusal:
        lm_evals_model(**arguments)
    assert "\n" not in str(refusal.value)


@without_vllm
def test_answers_are_kept_for_the_contents_of_a_model_and_its_lora(
    lm_evals_model: Callable[..., Any], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(**arguments: Any) -> str:
        model = lm_evals_model(**arguments)
        cache = SimpleNamespace(encode_key=str)
        model.set_cache_hook(SimpleNamespace(dbdict=cache))
        return str(cache.encode_key("request"))

    monkeypatch.setenv("HOME", str(tmp_path))
    lora = {"scores": "none", "lora_local_path": "~"}
    (tmp_path / "adapter.safetensors").write_bytes(b"first")
    first = key(**lora)
    assert key(**lora) == first
    (tmp_path / "adapter.safetensors").write_bytes(b"second")
    assert len({first, key(**lora), key(scores="none"), key(), key(scores="random:2")}) == 5

    def refuse(_: ModelSource) -> Path:
        raise ModelError("has no model.safetensors: use --format peft")

    monkeypatch.setattr(ModelSource, "checkpoint", refuse)
    with pytest.raises(ModelError, match="--use_cache tells models apart by their safetensors") as refusal:
        key()
    assert "--format" not in str(refusal.value)
