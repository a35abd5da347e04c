"""The method that a run stands for, and the names of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import result_files
from helpers.leaderboards import GOOD, leaderboard

from truthgate_eval.analysis.runs.methods import describe_gate, make_entries, method_of
from truthgate_eval.analysis.runs.paper_models import is_multimodal, is_same_model, paper_name
from truthgate_eval.analysis.runs.results_files import RunError
from truthgate_eval.analysis.runs.run import read_run
from truthgate_eval.errors import TruthGateError


def test_a_model_of_the_paper_is_known_by_any_of_its_names() -> None:
    assert paper_name("/models/llava-v1.5-7b/") == "llava-1.5-7b"
    assert paper_name("smollm2-135m-instruct") is None
    assert is_multimodal("llava-1.5-7b") and not is_multimodal("vicuna-7b")
    assert is_same_model("llava-hf/llava-1.5-7b-hf", "liuhaotian/llava-v1.5-7b")
    assert not is_same_model("lmsys/vicuna-7b-v1.5", "llava-hf/llava-1.5-7b-hf")


@pytest.mark.parametrize(
    ("harness", "gate", "model", "method"),
    [
        ("lm", result_files.VANILLA, "", "vanilla"),
        ("lm", None, "", "vanilla"),
        ("lm", result_files.random(3), "", "random"),
        ("lm", {**result_files.random(3), "kind": "random"}, "", "random"),
        ("lm", {**result_files.VANILLA, "kind": "vanilla"}, "", "vanilla"),
        ("lm", {**result_files.LLM, "kind": "scores", "scores": "random-halueval.npz"}, "", "llm"),
        ("lm", {**result_files.LLM, "kind": "scores", "scores": "none"}, "", "llm"),
        ("lm", result_files.LLM, "", "llm"),
        ("lm", {**result_files.LLM, "probed": {"model": None}}, "", "other"),
        ("lmms", result_files.LLM, "llava-hf/llava-1.5-7b-hf", "llm"),
        ("lmms", {**result_files.LLM, "probed": {"model": "/models/llava-1.5-7b-hf/"}}, "llava-hf/llava-1.5-7b-hf", "mllm"),
        ("lmms", {**result_files.LLM, "probed": {"model": "liuhaotian/llava-v1.5-7b"}}, "llava-hf/llava-1.5-7b-hf", "mllm"),
        ("lmms", {**result_files.LLM, "probed": {"model": "llava-hf/llava-1.5-7b-hf"}}, "llava-hf/llava-v1.6-vicuna-7b-hf", "other"),
    ],
)  # fmt: skip
def test_a_runs_method_is_read_from_its_gate(
    tmp_path: Path, harness: str, gate: Any, model: str, method: str
) -> None:
    if harness == "lm":
        folder = result_files.lm_eval_run(tmp_path, {"halueval_qa": GOOD}, gate=gate)
    else:
        folder = result_files.lmms_eval_run(tmp_path, {"poll_random": GOOD}, gate=gate, model=model)
    assert method_of(read_run(folder)) == method


def test_an_adapter_under_the_harnesss_own_model_is_not_vanilla(tmp_path: Path) -> None:
    args = {"pretrained": "a", "peft": "gate_dir"}
    folder = result_files.lm_eval_run(tmp_path / "peft", {"halueval_qa": GOOD}, gate=None, model_args=args)
    assert method_of(read_run(folder)) == "other"


def test_names_are_unique_or_given_by_the_user(runs: dict[str, Path], tmp_path: Path) -> None:
    again = result_files.lm_eval_run(
        tmp_path / "lam2", {"halueval_qa": GOOD}, gate={**result_files.LLM, "lam": 2.0}
    )
    gated = read_run(runs["gated"])
    names = [entry.name for entry in make_entries([(None, gated), (None, read_run(again))])]
    assert names == ["TruthProbe_LLM (gated)", "TruthProbe_LLM (lam2)"]
    assert make_entries([("mine", gated), ("random", gated)])[0].method == "other"
    with pytest.raises(RunError, match="would both be called"):
        make_entries([(None, gated), (None, gated)])
    with pytest.raises(RunError, match="no vanilla run among TruthProbe_LLM"):
        leaderboard(runs["gated"], again)
    with pytest.raises(RunError, match="--baseline nobody: no run by that name; expected one of vanilla"):
        leaderboard(runs["vanilla"], runs["gated"], baseline="nobody")
    with pytest.raises(RunError, match="one run alone"):
        leaderboard(runs["vanilla"])
    with pytest.raises(RunError, match="have no task in common"):
        leaderboard(runs["vanilla"], result_files.lm_eval_run(tmp_path / "x", {"sums": GOOD}))
    with pytest.raises(TruthGateError, match="unknown correction"):
        leaderboard(runs["vanilla"], runs["gated"], correction="tukey")


@pytest.mark.parametrize(
    ("changes", "method"),
    [
        ({"kind": "scores", "action": "soft", "positions": "all"}, "llm"),
        ({"kind": "scores", "action": "select", "top": 20, "bottom": 20}, "other"),
        ({"kind": "scores", "action": "shift", "top": 48, "alpha": 15.0}, "other"),
        ({"kind": "shuffled", "scores": "shuffled:a.npz:1"}, "other"),
        ({"kind": "random", "action": "select", "scores": "random:1"}, "random"),
    ],
)
def test_only_soft_gates_of_unshuffled_scores_are_the_papers_methods(
    tmp_path: Path, changes: dict[str, Any], method: str
) -> None:
    gate = {**result_files.LLM, **changes}
    run = read_run(result_files.lm_eval_run(tmp_path, {"halueval_qa": GOOD}, gate=gate))
    assert method_of(run) == method


def test_random_selections_are_not_averaged_with_random_soft_gates(tmp_path: Path) -> None:
    selection = {
        "kind": "random",
        "action": "select",
        "top": 2,
        "bottom": 3,
        "in": 2.0,
        "out": 0.0,
        "per": "all",
    }
    gates = [result_files.random(1), *({**result_files.random(seed), **selection} for seed in (1, 2))]
    runs = [
        (None, read_run(result_files.lm_eval_run(tmp_path / f"{n}", {"halueval_qa": GOOD}, gate=gate)))
        for n, gate in enumerate(gates)
    ]
    words = "select, top=2, bottom=3, in=2.0, out=0.0, per=all, post"
    labels = [entry.label for entry in make_entries(runs)]
    assert labels == ["random (post)", f"random ({words})", f"random ({words})"]
    assert [entry.label for entry in make_entries(runs[1:])] == [f"random ({words})"] * 2
    assert [entry.label for entry in make_entries(runs[:1])] == ["random"]


def instructed(folder: Path, text: str | None, gate: dict[str, Any] | None = result_files.VANILLA) -> Path:
    """A run of lm-eval with a system instruction, which lm-eval puts into every prompt."""
    prompt = f"{text}\n\nIs it so?" if text else "Is it so?"
    result_files.lm_eval_run(folder, {"halueval_qa": GOOD}, gate=gate, prompt=prompt)
    file = result_files.only_file(folder, "results_*")
    results = json.loads(file.read_text())
    file.write_text(json.dumps({**results, "system_instruction": text}))
    return folder


def test_a_system_instruction_is_a_method_beside_a_run_without_one(tmp_path: Path) -> None:
    plain, long, short, gated = (
        read_run(instructed(tmp_path / name, text, gate))
        for name, text, gate in (
            ("plain", None, result_files.VANILLA),
            ("long", "Answer with yes only where\nyou are sure.", result_files.VANILLA),
            ("short", "Be brief.", result_files.VANILLA),
            ("gated", "Be brief.", result_files.LLM),
        )
    )
    entries = make_entries([(None, run) for run in (plain, long, short, gated)])
    assert [(entry.name, entry.method) for entry in entries] == [
        ("vanilla", "vanilla"),
        ('system instruction "Answer with yes only..."', "prompt"),
        ('system instruction "Be brief."', "prompt"),
        ("TruthProbe_LLM", "llm"),
    ]
    assert method_of(short) == "vanilla"
    # Where every run has it, the run without a gate is the vanilla one.
    assert [entry.method for entry in make_entries([(None, short), (None, gated)])] == ["vanilla", "llm"]
    named = make_entries([(None, plain), ("brief", short), ("vanilla", long)])
    assert [(entry.name, entry.method) for entry in named] == [
        ("vanilla (plain)", "vanilla"), ("brief", "prompt"), ("vanilla (long)", "vanilla"),
    ]  # fmt: skip


def test_a_run_on_other_tasks_or_of_another_model_makes_no_prompt_baseline(tmp_path: Path) -> None:
    short = read_run(instructed(tmp_path / "short", "Be brief."))
    tasks = read_run(result_files.lm_eval_run(tmp_path / "tasks", {"sums": GOOD}))
    model = read_run(result_files.lm_eval_run(tmp_path / "model", {"halueval_qa": GOOD}, model_name="gpt2"))
    for other in (tasks, model):
        assert [entry.method for entry in make_entries([(None, short), (None, other)])] == ["vanilla"] * 2


@pytest.mark.parametrize(
    ("gate", "name", "method", "words"),
    [
        (
            {**result_files.VANILLA, "contrast": {"alpha": 0.5, "field": "knowledge"}},
            "contrast (alpha=0.5)", "contrast", "contrast=0.5 against no knowledge",
        ),
        (
            {**result_files.VANILLA, "contrast": {"alpha": 1.0, "image": "black"}},
            "contrast (alpha=1)", "contrast", "contrast=1 against a black image",
        ),
        (
            {**result_files.VANILLA, "contrast": {"alpha": 1.0, "image": "none"}},
            "contrast (alpha=1, image=none)", "contrast", "contrast=1 against no image",
        ),
        (
            {**result_files.LLM, "contrast": {"alpha": 1.0}},
            "TruthProbe_LLM, contrast (alpha=1)", "other",
            "lam=4.5, centered, post, scores of vicuna-7b-v1.5, contrast=1 against no context",
        ),
        (
            {**result_files.random(2), "contrast": {"alpha": 1.0}},
            "random:2, contrast (alpha=1)", "other", "post, contrast=1 against no context",
        ),
    ],
)  # fmt: skip
def test_a_contrast_is_a_method_of_its_own(
    tmp_path: Path, gate: dict[str, Any], name: str, method: str, words: str
) -> None:
    run = read_run(result_files.lm_eval_run(tmp_path, {"halueval_qa": GOOD}, gate=gate, model_name="m"))
    [entry] = make_entries([(None, run)])
    assert (entry.name, entry.method, describe_gate(run)) == (name, method, words)


def test_a_recorded_contrast_without_a_number_is_refused(tmp_path: Path) -> None:
    gate = {**result_files.VANILLA, "contrast": {"alpha": "much"}}
    with pytest.raises(TruthGateError, match=r"contrast of the recorded gate is .*expected an alpha"):
        read_run(result_files.lm_eval_run(tmp_path, {"halueval_qa": GOOD}, gate=gate))
