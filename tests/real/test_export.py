"""The packaged model, exported and gated live: lm-eval's own `hf` gives the same log-likelihoods."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command_line import truthgate

from truthgate_eval.packaged.smollm2 import SMOLLM2, resolve_smollm2

pytestmark = [pytest.mark.real, pytest.mark.slow]
GATE = "lam=20,norm=centered,site=post"
SCORES = "smollm2-135m-instruct__halueval-qa"


def loglikelihoods(model: str, arguments: str, limit: int) -> np.ndarray:
    """Of every choice of the first documents of halueval_qa_select."""
    from lm_eval import simple_evaluate

    results: Any = simple_evaluate(
        model=model, model_args=arguments, tasks=["halueval_qa_select"], limit=limit, device="cpu", log_samples=True,
        batch_size=4, random_seed=0,
    )  # fmt: skip
    samples = results["samples"]["halueval_qa_select"]
    return np.array([[float(response[0]) for response in sample["filtered_resps"]] for sample in samples])


def test_adapter_and_checkpoint_under_lm_evals_hf_give_the_gated_models_loglikelihoods(
    tmp_path: Path,
) -> None:
    base, limit = resolve_smollm2(SMOLLM2), int(os.environ.get("TRUTHGATE_TEST_LIMIT", "12"))
    for format in ("peft", "checkpoint"):
        done = truthgate(
            "export", "--format", format, "--output", str(tmp_path / format),
            "--model_args", f"pretrained={SMOLLM2},scores={SCORES},{GATE}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    live = loglikelihoods("gated_hf", f"pretrained={SMOLLM2},scores={SCORES},{GATE},dtype=float32", limit)
    vanilla = loglikelihoods("hf", f"pretrained={base},dtype=float32", limit)
    assert np.abs(live - vanilla).max() > 0.1
    for name, arguments in (
        ("peft", f"pretrained={base},peft={tmp_path / 'peft'},dtype=float32"),
        ("checkpoint", f"pretrained={tmp_path / 'checkpoint'},dtype=float32"),
    ):
        difference = np.abs(loglikelihoods("hf", arguments, limit) - live).max()
        sys.stdout.write(f"{name}: {difference:.1e}, the gate: {np.abs(live - vanilla).max():.1e}\n")
        assert difference < 1e-3
