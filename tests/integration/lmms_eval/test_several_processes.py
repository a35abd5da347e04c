"""lmms-eval with `gated_llava` in two processes: the answers, results and found strength of one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import lmms_eval_runs as kit
from helpers.launch import launch

from truthgate_eval.gating.scores import TruthScores

pytestmark = pytest.mark.slow


def read(out: Path) -> tuple[dict[str, Any], dict[str, dict[int, Any]]]:
    """The results file, and the answer to each document of each task."""
    [file] = out.glob("*/*_results.json")
    answers = {}
    for samples in out.glob("*/*_samples_*.jsonl"):
        rows = [json.loads(line) for line in samples.read_text().splitlines()]
        answers[samples.stem.split("_samples_")[1]] = {row["doc_id"]: row["filtered_resps"] for row in rows}
        assert len({row["doc_id"] for row in rows}) == len(rows)
    return json.loads(file.read_text()), answers


def flat(values: Any) -> list[Any]:
    """The losses and flags of nested lists; lmms-eval writes numbers as texts."""
    if isinstance(values, list):
        return [part for value in values for part in flat(value)]
    return [json.loads(values.lower()) if isinstance(values, str) else values]


def test_two_processes_give_the_results_of_one_and_find_its_strength(
    vlm_checkpoint: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = kit.save_tasks(tmp_path / "tasks", 7)
    scores = TruthScores(
        np.random.default_rng(0).uniform(size=(3, 4)), metadata={"model": "m", "site": "post"}
    )
    scores.save(tmp_path / "scores.npz")
    arguments = (
        f"pretrained={vlm_checkpoint('llava')},scores={tmp_path / 'scores.npz'},lam=kl:0.02,device=cpu"
    )
    run = ["-m", "lmms_eval", "--model", "gated_llava", "--model_args", arguments, "--include_path", str(tasks),
           "--tasks", f"tiny_choice,{kit.TASK}", "--log_samples", "--batch_size", "auto"]  # fmt: skip
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    done = launch(*run, "--output_path", "two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = subprocess.run(
        [sys.executable, *run, "--output_path", "one"], cwd=tmp_path, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr[-3000:]
    (two, answers), (one, expected) = read(tmp_path / "two"), read(tmp_path / "one")
    assert two["gate"]["strength"].keys() == one["gate"]["strength"].keys()
    assert two["gate"]["lam"] == pytest.approx(one["gate"]["lam"], rel=1e-4)
    assert two["gate"]["strength"]["prompts"] == one["gate"]["strength"]["prompts"] == 7
    assert answers.keys() == expected.keys() == {"tiny_choice", kit.TASK}
    assert answers[kit.TASK] == expected[kit.TASK]
    for document, pairs in expected["tiny_choice"].items():
        assert flat(answers["tiny_choice"][document]) == pytest.approx(flat(pairs), rel=1e-3)
    for task, metrics in one["results"].items():
        for name, value in metrics.items():
            if isinstance(value, float):
                assert two["results"][task][name] == pytest.approx(value, abs=1e-9), (task, name)
