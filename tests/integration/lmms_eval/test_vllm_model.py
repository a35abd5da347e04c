"""`gated_vllm` of lmms-eval: its own two vLLM classes, made with a stand-in of vLLM's engine.

vLLM cannot be installed beside the tests' torch (`helpers.vllm_stand_ins`), and these two have never run in the
real one: `python -m scripts.vllm_check` runs lm-eval's `gated_vllm` alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from helpers import tiny_vision_models
from helpers.vllm_stand_ins import LLM, make_workers

from truthgate_eval.errors import ModelError, ProcessError, TruthGateError
from truthgate_eval.export.vllm_engine import WORKER_EXTENSION
from truthgate_eval.export.vllm_worker import computed_weight, find_projections
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate import fold, random_gate
from truthgate_eval.harness import vllm as engine_gate
from truthgate_eval.harness.lmms_eval import vllm_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    tiny_vision_models.save(folder, "llava")
    return folder


@pytest.fixture(autouse=True)
def vllm(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """lmms-eval's two modules with a stand-in of `vllm.LLM`, which has the checkpoint's projections."""
    from lmms_eval.models.simple import vllm as simple

    def load(**options: Any) -> LLM:
        if "nonsense" in options:
            raise TypeError("EngineArgs.__init__() got an unexpected keyword argument 'nonsense'")
        if options.get("max_model_len") == 1:
            raise RuntimeError("Engine core initialization failed.\nSee root cause above.")
        model = transformers.LlavaForConditionalGeneration.from_pretrained(
            options["model"], dtype=torch.float32
        )
        layout = find_attention_layout(model)
        llm = LLM(make_workers([projection.module for projection in layout.projections]))  # type: ignore[misc]
        llm.options = options
        llm.llm_engine = SimpleNamespace(model_config=SimpleNamespace(dtype=torch.float32))  # type: ignore[attr-defined]
        return llm

    monkeypatch.setattr(simple, "LLM", load)
    monkeypatch.setattr(vllm_model, "check_vllm_is_installed", lambda _: None)
    monkeypatch.setattr(engine_gate, "_runs_on_cpu", lambda: True)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="0"))  # type: ignore[misc]
    yield


def make(checkpoint: Path, *, force_simple: bool = False, more: str = "") -> Any:
    from lmms_eval.models import get_model

    arguments = f"model={checkpoint},scores=random:1{more}"
    return get_model("gated_vllm", force_simple=force_simple).create_from_arg_string(
        arguments, {"batch_size": 4}
    )


@pytest.mark.parametrize("force_simple", [False, True])
def test_the_language_model_is_gated_and_the_results_file_says_so(
    checkpoint: Path, force_simple: bool
) -> None:
    model = make(checkpoint, force_simple=force_simple, more=",site=pre,max_model_len=512")
    assert model.is_simple is force_simple and model.batch_size_per_gpu == 4
    options = model.client.options
    assert options["worker_extension_cls"] == WORKER_EXTENSION and options["enforce_eager"] is True
    assert options["max_model_len"] == 512 and "scores" not in options
    assert options["trust_remote_code"] is False  # lmms-eval's own vllm would run a model's code
    expected = transformers.LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    layout = find_attention_layout(expected)
    fold(expected, random_gate(layout.shape, seed=1, site="pre"), layout=layout)
    found = find_projections(model.client.workers[0].model_runner.get_model(), layout.layer_numbers)
    for number, projection in zip(layout.layer_numbers, layout.projections, strict=True):
        assert torch.equal(computed_weight(found[number][1]), projection.module.weight)
    info = model.get_model_info()
    assert info["gate"]["mode"] == "folded" and info["gate"]["site"] == "pre"
    assert (
        info["model_info"]["pretrained"] == str(checkpoint) and info["model_info"]["versions"]["vllm"] == "0"
    )


def test_pretrained_is_another_name_of_model(checkpoint: Path) -> None:
    model = vllm_model.GatedChatVLLM(pretrained=str(checkpoint), scores="none")
    assert model.client.options["model"] == str(checkpoint) and model.gate_settings.is_vanilla
    assert "worker_extension_cls" not in model.client.options


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (",pretrained=other", "needs one model, and two are given"),
        (",nonsense=1", "unknown option 'nonsense'"),
        (",max_model_len=1", "cannot be loaded: .*Engine core initialization failed.$"),
        (",contrast=0.5", "has no contrast"),
        (",positions=last", "positions=last"),
    ],
)
def test_a_mistake_is_one_line(checkpoint: Path, more: str, message: str) -> None:
    with pytest.raises(TruthGateError, match=message):
        make(checkpoint, more=more)


def test_several_processes_are_refused(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ProcessError, match="gated_vllm runs in one process"):
        make(checkpoint)


def test_a_run_is_left_as_it_is_but_for_what_it_cannot_do(checkpoint: Path) -> None:
    model = make(checkpoint)
    with model.system_instruction_of_run(None), model.check_images_of_run([]):
        model.check_contrast([("pope", "generate_until")])
    with (
        pytest.raises(ModelError, match="--system_instruction"),
        model.system_instruction_of_run("Be brief."),
    ):
        pass
    with pytest.raises(ModelError, match="--use_cache"):
        model.fingerprint()
