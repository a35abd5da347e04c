"""The packaged model, exported and gated live, through the command lines that a user types."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from truthgate_eval.packaged.smollm2 import SMOLLM2, resolve_smollm2

pytestmark = [pytest.mark.real, pytest.mark.slow]
PROGRAMS = Path(sys.executable).parent
GATE = "scores=smollm2-135m-instruct__halueval-qa,lam=20,norm=centered"
TASK = "halueval_qa_select"


def run(program: str, *arguments: str) -> None:
    done = subprocess.run([str(PROGRAMS / program), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def loglikelihoods(model: str, model_args: str, output: Path, limit: int) -> np.ndarray:
    """[documents, choices] of the samples that `lm_eval` writes."""
    run(
        "lm_eval", "--model", model, "--model_args", model_args, "--tasks", TASK, "--limit", str(limit),
        "--log_samples", "--output_path", str(output),
    )  # fmt: skip
    [file] = output.rglob(f"samples_{TASK}_*.jsonl")
    samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [sample["doc_id"] for sample in samples] == list(range(limit))
    return np.array([[float(response[0]) for response in sample["filtered_resps"]] for sample in samples])


def test_lm_evals_hf_gives_the_loglikelihoods_of_gated_hf_from_both_exports(tmp_path: Path) -> None:
    base, limit = resolve_smollm2(SMOLLM2), int(os.environ.get("TRUTHGATE_TEST_LIMIT", "12"))
    for format in ("peft", "checkpoint"):
        run(
            "truthgate", "export", "--format", format, "--model", "hf", "--model_args",
            f"pretrained={SMOLLM2},{GATE}", "--output", str(tmp_path / format),
        )  # fmt: skip
    live = loglikelihoods("gated_hf", f"pretrained={SMOLLM2},{GATE}", tmp_path / "live", limit)
    vanilla = loglikelihoods("hf", f"pretrained={base}", tmp_path / "vanilla", 2)
    moved = np.abs(live[:2] - vanilla).max()
    assert moved > 0.1
    for name, arguments in (
        ("peft", f"pretrained={base},peft={tmp_path / 'peft'}"),
        ("checkpoint", f"pretrained={tmp_path / 'checkpoint'}"),
    ):
        found = loglikelihoods("hf", arguments, tmp_path / f"of_{name}", limit)
        difference = np.abs(found - live).max()
        sys.stdout.write(f"{name}: {difference:.1e}, the gate on two documents: {moved:.1e}\n")
        assert found.shape == live.shape and difference < 1e-3
