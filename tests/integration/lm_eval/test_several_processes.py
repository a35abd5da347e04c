"""lm-eval with `gated_hf` in two processes: the samples and results of one, and no process waits for ever."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.launch import launch, nearly, numbers

from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.lm_eval.process_shares import merge_in_order

SCRIPT = """
import json, os, sys
from pathlib import Path
import lm_eval
from lm_eval.tasks import TaskManager

given = json.loads(Path("given.json").read_text())
name = os.environ.get("RANK", "one")
for number, run in enumerate(given["runs"]):
    manager = TaskManager(metadata={"halueval_path": given["data"]}, include_path="tasks")
    found = lm_eval.simple_evaluate(
        model="gated_hf", task_manager=manager, device="cpu", bootstrap_iters=50, log_samples=True, **run
    )
    if found is not None:
        kept = {key: found[key] for key in ("results", "samples", "n-samples")}
        kept["gate"] = found["config"]["gate"]
        Path(f"found_{name}_{number}.json").write_text(json.dumps(kept, default=str))
"""
# Its examples are drawn at random for each document.
FEW_SHOT = """
task: sums_with_examples
custom_dataset: !function truthgate_eval.harness.lm_eval.tasks.load_halueval_qa
output_type: generate_until
test_split: test
fewshot_split: test
num_fewshot: 2
doc_to_text: "{{question}}"
doc_to_target: " {{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0, data: halueval/qa}
"""


def prepare(folder: Path, checkpoint: str, data: str, runs: list[dict[str, Any]]) -> None:
    made = TruthScores(
        np.random.default_rng(0).uniform(size=(3, 4)), metadata={"model": "tiny", "site": "post"}
    )
    made.save(folder / "scores.npz")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "sums.yaml").write_text(FEW_SHOT)
    for run in runs:
        scores = "none" if "yes_offset" in run["model_args"] else folder / "scores.npz"
        run["model_args"] = f"pretrained={checkpoint},scores={scores},{run['model_args']}"
    (folder / "given.json").write_text(json.dumps({"runs": runs, "data": data}))
    (folder / "script.py").write_text(SCRIPT)


@pytest.mark.slow
def test_two_processes_give_the_samples_and_results_of_one(
    checkpoint: str, halueval_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[dict[str, Any]] = [
        # 7 documents: the second process has one fewer
        {
            "model_args": "lam=0.5",
            "tasks": ["halueval_qa", "halueval_qa_select"],
            "limit": 7,
            "batch_size": "auto",
        },
        {
            "model_args": "lam=0.5,engine=off",
            "tasks": ["halueval_qa_select"],
            "limit": 7,
            "batch_size": "auto",
        },
        {"model_args": "lam=0.5", "tasks": ["sums_with_examples"], "limit": 5, "batch_size": 2},
        {
            "model_args": "lam=kl:0.02,kl_prompts=9",
            "tasks": ["halueval_qa_select"],
            "limit": 12,
            "batch_size": 2,
        },
        {
            "model_args": "yes_offset=kl:0.001",
            "tasks": ["halueval_qa_select"],
            "limit": 3,
            "batch_size": 2,
        },
    ]
    prepare(tmp_path, checkpoint, halueval_folder, runs)
    done = launch("script.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list(tmp_path.glob("found_1_*"))  # the second process has no results
    monkeypatch.chdir(tmp_path)
    runpy.run_path("script.py")
    for number, run in enumerate(runs):
        two, one = (
            json.loads((tmp_path / f"found_{name}_{number}.json").read_text()) for name in ("0", "one")
        )
        assert two["n-samples"] == one["n-samples"], run
        for part in ("gate", "results", "samples"):
            assert numbers(two[part]) == nearly(one[part]), run


@pytest.mark.slow
def test_the_command_line_writes_one_file_of_results(
    checkpoint: str, halueval_folder: str, tmp_path: Path
) -> None:
    prepare(tmp_path, checkpoint, halueval_folder, [])
    done = launch(
        "-m", "lm_eval", "--model", "gated_hf", "--model_args",
        f"pretrained={checkpoint},scores={tmp_path / 'scores.npz'},lam=0.5", "--tasks", "halueval_qa", "--limit", "8",
        "--metadata", json.dumps({"halueval_path": halueval_folder}), "--log_samples", "--output_path", "out",
        "--batch_size", "auto", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    [samples] = (tmp_path / "out").rglob("samples_halueval_qa_*.jsonl")
    [results] = (tmp_path / "out").rglob("results_*.json")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [row["doc_id"] for row in rows] == list(range(8))
    assert json.loads(results.read_text())["n-samples"]["halueval_qa"]["effective"] == 8


def test_samples_and_metrics_are_put_into_the_order_of_one_process() -> None:
    samples = [
        {"task": [{"filter": own, "doc_id": n} for own in ("a", "b") for n in range(rank, 5, 2)]}
        for rank in (0, 1)
    ]
    [merged] = merge_in_order(samples)
    assert [(row["filter"], row["doc_id"]) for row in merged["task"]] == [
        (own, n) for own in ("a", "b") for n in range(5)
    ]
    assert merge_in_order(["neither", "nor"]) == ["neither", "nor"]
