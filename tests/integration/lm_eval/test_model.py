"""`gated_hf` inside lm-eval, through lm-eval's own entry points."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import peft
import pytest
import torch
import transformers as hf
from helpers import tiny_models as factories
from lm_eval.tasks import TaskManager

from truthgate_eval.errors import GateError, ModelError, TruthGateError
from truthgate_eval.gating.gate import attach, make_gate
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.lm_eval.model import GatedHF

SCORES = TruthScores(
    np.random.default_rng(0).uniform(size=(3, 4)), metadata={"model": "tiny", "site": "post"}
)


@pytest.fixture
def scores(tmp_path: Path) -> str:
    return str(SCORES.save(tmp_path / "scores.npz"))


@functools.cache
def task_manager(data: str) -> TaskManager:
    """lm-eval's tasks, read once for all tests: that takes seconds."""
    return TaskManager(metadata={"halueval_path": data})


def answers(model: str, model_args: dict[str, Any], data: str, **options: Any) -> list[Any]:
    """Every sample's raw answers, for generation and log-likelihood tasks."""
    run = lm_eval.simple_evaluate(
        model=model, model_args=model_args, tasks=["halueval_qa", "halueval_qa_select"], limit=6,
        device="cpu", task_manager=task_manager(data), bootstrap_iters=0, **options,
    )  # fmt: skip
    assert run is not None
    return [(task, s["doc_id"], s["resps"]) for task, ss in sorted(run["samples"].items()) for s in ss]


def assert_same_answers(ours: list[Any], theirs: list[Any]) -> None:
    """Texts and greedy flags equal, log-likelihoods up to rounding: a shared prefix sums in another order."""
    assert len(ours) == len(theirs) == 12
    for (task, doc, found), (task_too, doc_too, expected) in zip(ours, theirs, strict=True):
        assert (task, doc) == (task_too, doc_too)
        if task == "halueval_qa":
            assert found == expected
        else:
            assert [r[0][1] for r in found] == [r[0][1] for r in expected]
            assert [r[0][0] for r in found] == pytest.approx([r[0][0] for r in expected], abs=1e-4)


@pytest.mark.parametrize(
    "options", [{}, {"batch_size": 4}, {"apply_chat_template": True}, {"num_fewshot": 2}]
)
def test_scores_none_gives_the_answers_of_hf(
    options: dict[str, Any], checkpoint: str, halueval_folder: str
) -> None:
    ours = answers("gated_hf", {"pretrained": checkpoint, "scores": "none"}, halueval_folder, **options)
    theirs = answers("hf", {"pretrained": checkpoint}, halueval_folder, **options)
    assert_same_answers(ours, theirs)
    off = {"pretrained": checkpoint, "scores": "none", "engine": "off"}
    assert answers("gated_hf", off, halueval_folder, **options) == theirs


def test_a_gate_changes_the_answers_and_lam_zero_does_not(
    checkpoint: str, halueval_folder: str, scores: str
) -> None:
    model = {"pretrained": checkpoint, "scores": scores, "norm": "minmax"}
    vanilla = answers("hf", {"pretrained": checkpoint}, halueval_folder)
    assert_same_answers(answers("gated_hf", {**model, "lam": 0}, halueval_folder), vanilla)
    assert answers("gated_hf", {**model, "lam": 0, "engine": "off"}, halueval_folder) == vanilla
    assert answers("gated_hf", {**model, "lam": 3.0}, halueval_folder) != vanilla


@pytest.mark.parametrize("mode", ["live", "folded"])
def test_model_args_become_the_gate_that_they_say(checkpoint: str, scores: str, mode: str) -> None:
    lm = GatedHF(
        checkpoint, scores=scores, lam="1.5", norm="minmax", site="pre", layers="0-1", mode=mode, device="cpu"
    )
    expected = hf.AutoModelForCausalLM.from_pretrained(checkpoint)
    attach(expected, make_gate(SCORES, lam=1.5, norm="minmax", site="pre", layers=[0, 1]))
    torch.testing.assert_close(
        lm.model(factories.prompts()).logits, expected(factories.prompts()).logits, atol=1e-5, rtol=1e-4
    )
    gate = lm.get_model_info()["gate"]
    assert gate["sha256"] == SCORES.fingerprint and gate["mode"] == mode and gate["lam"] == 1.5


def test_an_adapter_is_loaded_under_the_gate(checkpoint: str, scores: str, tmp_path: Path) -> None:
    config = peft.LoraConfig(target_modules=["o_proj"], r=2, init_lora_weights=False)
    torch.manual_seed(1)
    adapted = peft.get_peft_model(hf.AutoModelForCausalLM.from_pretrained(checkpoint), config)
    adapted.save_pretrained(tmp_path / "adapter")
    lm = GatedHF(checkpoint, peft=str(tmp_path / "adapter"), scores=scores, lam=1, device="cpu")
    merged = adapted.merge_and_unload()
    attach(merged, make_gate(SCORES, lam=1, norm="centered"))
    torch.testing.assert_close(
        lm.model(factories.prompts()).logits, merged(factories.prompts()).logits, atol=1e-5, rtol=1e-4
    )


def test_a_loaded_model_can_be_passed(checkpoint: str, scores: str) -> None:
    model = hf.AutoModelForCausalLM.from_pretrained(checkpoint)
    vanilla = model(factories.prompts()).logits
    lm = GatedHF(model, tokenizer=factories.tiny_tokenizer(), scores=scores, lam=2)
    assert not torch.equal(vanilla, lm.model(factories.prompts()).logits)
    lm.gate_handle.remove()
    assert torch.equal(vanilla, lm.model(factories.prompts()).logits)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, GateError, "needs scores"),
        ({"scores": "none", "foo": 1}, GateError, "unknown option 'foo'"),
        (
            {"scores": "none", "peft": "/no/adapter"},
            ModelError,
            "adapter '/no/adapter' of model .* cannot be loaded",
        ),
        ({"scores": "none", "pretrained": "/no/model"}, ModelError, "model '/no/model' cannot be loaded"),
        ({"scores": "none", "device": "cuda"}, ModelError, "no CUDA device"),
        ({"scores": "random:1", "mode": "hot"}, GateError, "unknown mode"),
        ({"scores": "none", "engine": "warp"}, GateError, "unknown engine 'warp'"),
    ],
)
def test_every_mistake_is_one_line(
    arguments: dict[str, Any], error: type[TruthGateError], message: str, checkpoint: str
) -> None:
    if message == "no CUDA device" and torch.cuda.is_available():
        arguments = {**arguments, "device": "cuda:99"}
    with pytest.raises(error, match=message) as caught:
        GatedHF(**{"pretrained": checkpoint, "device": "cpu", **arguments})
    assert "\n" not in str(caught.value)


def command(module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *module.split(), *arguments], capture_output=True, text=True, check=False, cwd=cwd
    )


def test_the_command_line_writes_the_gate_into_its_results(
    checkpoint: str, halueval_folder: str, scores: str, tmp_path: Path
) -> None:
    done = command(
        "-m lm_eval", "--model", "gated_hf", "--model_args", f"pretrained={checkpoint},scores={scores},lam=0.3",
        "--tasks", "halueval_qa", "--limit", "3", "--device", "cpu", "--output_path", "out", "--log_samples",
        "--metadata", json.dumps({"halueval_path": halueval_folder}), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (results,) = (tmp_path / "out").rglob("results_*.json")
    config = json.loads(results.read_text())["config"]
    assert config["gate"]["sha256"] == SCORES.fingerprint
    assert (config["gate"]["lam"], config["gate"]["norm"], config["gate"]["site"]) == (
        0.3,
        "centered",
        "post",
    )
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    assert len(samples.read_text().splitlines()) == 3
    # What the run prints: lm-eval's warnings, and not the lines that say nothing.
    assert "--limit SHOULD ONLY BE USED FOR TESTING" in done.stderr
    for noise in ("Custom kwargs", "Cuda Available?", "Loading weights", "Building contexts"):
        assert noise not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--model", "dummy"], ["--model", "gated_hf", "--verbosity", "INFO"]])
def test_other_models_runs_and_a_chosen_verbosity_print_everything(
    arguments: list[str], checkpoint: str, halueval_folder: str, tmp_path: Path
) -> None:
    model_args = [] if "dummy" in arguments else ["--model_args", f"pretrained={checkpoint},scores=none"]
    done = command(
        "-m lm_eval", *arguments, *model_args, "--tasks", "halueval_qa", "--limit", "2",
        "--metadata", json.dumps({"halueval_path": halueval_folder}), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Custom kwargs can be passed" in done.stderr and "Building contexts for" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_args", "message"),
    [
        ("scores=missing.npz,lam=1", "error: no scores 'missing.npz'"),
        ("scores={scores},lam=abc", "error: lam=abc is not a number"),
        ("scores={scores},lam=nan", "error: lam=nan is not a finite"),
        ("scores={wide},lam=1", "error: scores of wide have 2 layers x 9 heads, but "),
    ],
)
def test_a_mistake_on_lm_evals_command_line_is_one_line_and_a_failure(
    model_args: str, message: str, checkpoint: str, halueval_folder: str, scores: str, tmp_path: Path
) -> None:
    wide = TruthScores(np.ones((2, 9)), metadata={"model": "wide"}).save(tmp_path / "wide.npz")
    given = model_args.format(scores=scores, wide=wide)
    done = command(
        "-m lm_eval", "--model", "gated_hf", "--model_args", f"pretrained={checkpoint},{given}",
        "--tasks", "halueval_qa", "--limit", "2", "--metadata", json.dumps({"halueval_path": halueval_folder}),
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and done.stderr.splitlines()[-1].startswith(message)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("module", ["-m lm_eval", "-m accelerate.commands.launch --cpu -m lm_eval"])
def test_the_bare_command_runs_on_the_packaged_model(module: str, tmp_path: Path) -> None:
    done = command(
        module, "--model", "gated_hf", "--tasks", "halueval", "--limit", "2", "--output_path", "out",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(results.read_text())
    assert {"halueval_qa", "halueval_dialogue", "halueval_summarization"} <= found["results"].keys()
    assert found["config"]["gate"]["scores"] == "smollm2-135m-instruct__halueval-qa"


def test_none_is_a_word_in_model_args_that_are_text(scores: str, tmp_path: Path) -> None:
    folder = factories.save_tiny_checkpoint(tmp_path / "model")
    for arguments, expected in [
        (f"pretrained={folder},scores=none", {"kind": "vanilla"}),
        (f"pretrained={folder},scores={scores},lam=1,norm=none", {"kind": "scores", "norm": "none"}),
    ]:
        settings = GatedHF.create_from_arg_string(arguments, {"device": "cpu"}).gate_settings.describe()
        assert settings.items() >= expected.items()


@pytest.mark.real
@pytest.mark.slow
def test_simple_evaluate_needs_only_the_models_name() -> None:
    run = lm_eval.simple_evaluate(model="gated_hf", tasks=["halueval_qa"], limit=4, bootstrap_iters=0)
    assert run is not None and run["config"]["gate"]["sha256"]
    assert len(run["samples"]["halueval_qa"]) == 4


@pytest.mark.real
@pytest.mark.slow
def test_scores_none_on_the_real_model_gives_the_samples_of_hf() -> None:
    from truthgate_eval.packaged.smollm2 import SMOLLM2, resolve_smollm2

    texts = []
    for model, arguments in (
        ("hf", {"pretrained": resolve_smollm2(SMOLLM2)}),
        ("gated_hf", {"scores": "none"}),
    ):
        run = lm_eval.simple_evaluate(
            model=model,
            model_args=arguments,
            tasks=["halueval_qa"],
            limit=12,
            device="cpu",
            bootstrap_iters=0,
        )
        assert run is not None
        texts.append([sample["resps"] for sample in run["samples"]["halueval_qa"]])
    assert texts[0] == texts[1]
