"""The whole way with pictures, on photographs and with a real language model; the vision half is untrained.

`data poll` -> `probe --model vlm` -> `lmms_eval --model gated_llava`, each through its command line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_vision_models as factories_vlm

from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.metrics.pope import parse_answer

pytestmark = [pytest.mark.real, pytest.mark.slow]

BIN = Path(sys.executable).parent
IMAGES = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Path:
    """A model, and a poll over a few of coco128's photographs."""
    folder = tmp_path_factory.mktemp("whole_way")
    factories_vlm.save_smollm2_llava(folder / "llava")
    photographs = shared_data / "coco128"
    run(
        folder, "truthgate", "data", "poll", "--images", str(photographs / "images"), "--annotations",
        str(photographs / "annotations.jsonl"), "--limit", str(IMAGES), "--probe-share", "0.5",
        "--out", str(folder / "data"),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def scores(folder: Path) -> Path:
    run(
        folder, "truthgate", "probe", "--model", "vlm", "--model_args", f"pretrained={folder / 'llava'}",
        "--tasks", "probe_poll", "--device", "cpu", "--output", "poll.npz",
    )  # fmt: skip
    return folder / "poll.npz"


def run(folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "TRUTHGATE_DATA": str(folder / "data"),
        "HF_DATASETS_CACHE": str(folder / "cache"),
    }
    done = subprocess.run(
        [str(BIN / program), *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def evaluate(
    folder: Path, out: str, model_args: str, tasks: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The results file and the samples of the last task of an lmms-eval run."""
    run(
        folder, "lmms_eval", "--model", "gated_llava", "--model_args",
        f"pretrained={folder / 'llava'},device=cpu,{model_args}", "--tasks", tasks, "--batch_size", "4",
        "--output_path", out, "--log_samples",
    )  # fmt: skip
    [results] = (folder / out).glob("*/*_results.json")
    [samples] = (folder / out).glob(f"*/*_samples_{tasks.split(',')[-1]}.jsonl")
    return json.loads(results.read_text()), [json.loads(line) for line in samples.read_text().splitlines()]


def test_the_artifact_says_what_was_probed(scores: Path) -> None:
    artifact = TruthScores.load(scores)
    meta = artifact.metadata
    assert artifact.shape == (30, 9) and np.isfinite(artifact.scores).all()
    assert (
        meta["task"] == "probe_poll"
        and meta["image"] == "document"
        and meta["architecture"].startswith("Llava")
    )
    assert meta["documents"] == 6 * IMAGES // 2 and meta["sequences"] == 2 * meta["documents"]
    assert list(meta["rows"]) == ["poll/probe"]


def test_the_gate_is_evaluated_on_the_poll(folder: Path, scores: Path) -> None:
    results, samples = evaluate(folder, "gated", f"scores={scores},lam=0.3", "poll_adversarial")
    assert results["gate"]["lam"] == 0.3 and results["gate"]["sha256"] == TruthScores.load(scores).fingerprint
    assert len(samples) == 6 * IMAGES // 2
    readings = [parse_answer(row["filtered_resps"], row["target"]) for row in samples]
    right = sum(reading.parsed == reading.gold for reading in readings) / len(readings)
    assert results["results"]["poll_adversarial"]["acc,none"] == pytest.approx(right)
    vanilla, plain = evaluate(folder, "vanilla", "scores=none", "poll_random,poll_adversarial")
    assert vanilla["gate"]["scores"] == "none"
    asked = [[(row["input"], row["target"]) for row in rows] for rows in (plain, samples)]
    assert asked[0] == asked[1]
    assert [row["filtered_resps"] for row in plain] != [row["filtered_resps"] for row in samples]
