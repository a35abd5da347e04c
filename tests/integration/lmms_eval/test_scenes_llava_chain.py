"""The packaged scenes_llava as a stand-in for LLaVA-1.5: `gated_llava` probed, gated, compared and swept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.command_line import truthgate

from truthgate_eval.analysis.runs.run import read_run
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.packaged.models import resolve_packaged
from truthgate_eval.packaged.scenes_llava import SCENES_LLAVA

pytestmark = [pytest.mark.real, pytest.mark.slow]

BASE = "smollm2-135m-instruct__halueval-qa"


@pytest.fixture(scope="module")
def model() -> str:
    """Its folder as model arguments; bfloat16 is what it was trained in."""
    return f"pretrained={resolve_packaged(SCENES_LLAVA, 'image')},dtype=bfloat16"


@pytest.fixture(scope="module")
def own(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its truth scores, probed with images."""
    folder = tmp_path_factory.mktemp("chain")
    done = truthgate(
        "probe", "--model", "gated_llava", "--model_args", model, "--tasks", "probe_scenes", "--limit", "24",
        "--site", "pre", "--device", "cpu", "--output", "own.npz", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "own.npz"


def answers(folder: Path, name: str, *arguments: str) -> tuple[Path, dict[Any, Any]]:
    """lmms-eval's own command line: the run's folder, and every document's answer."""
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "lmms_eval"), "--model", "gated_llava", "--model_args",
            ",".join(arguments), "--tasks", "scenes_random", "--limit", "12", "--log_samples",
            "--output_path", name,
        ],
        cwd=folder, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    [task] = read_run(folder / name).tasks.values()
    return folder / name, {key: sample.answer for key, sample in task.samples.items()}


def test_its_scores_have_the_shape_of_its_bases(own: Path) -> None:
    scores = TruthScores.load(own)
    assert scores.scores.shape == TruthScores.resolve(BASE).scores.shape
    assert scores.metadata["architecture"] == "LlavaForConditionalGeneration"
    done = truthgate("correlate", str(own), BASE)
    assert done.returncode == 0 and "within layers" in done.stdout, done.stderr


def test_live_and_folded_gates_answer_alike_and_compare_reads_them(own: Path, model: str) -> None:
    gate = (f"scores={own}", "lam=0.4", "norm=minmax", "site=pre")
    runs = {
        "vanilla": answers(own.parent, "vanilla", model, "scores=none"),
        "live": answers(own.parent, "live", model, *gate),
        "folded": answers(own.parent, "folded", model, *gate, "mode=folded"),
    }
    texts = {name: found for name, (_, found) in runs.items()}
    assert len(texts["vanilla"]) == 12 and set(texts["vanilla"].values()) == {"Yes", "No"}
    yes = {
        name: {key: text.startswith("Yes") for key, text in found.items()} for name, found in texts.items()
    }
    assert yes["live"] == yes["folded"]
    done = truthgate("compare", *(str(folder) for folder, _ in runs.values()))
    assert done.returncode == 0 and "scenes_random" in done.stdout, done.stderr
    page = own.parent / "page.html"
    done = truthgate("report", *(str(folder) for folder, _ in runs.values()), str(own), "--output", str(page))
    assert done.returncode == 0 and "3 runs, 1 artifacts, 12 documents" in done.stdout, done.stderr
    assert "scenes_random" in page.read_text()


def test_a_sweep_chooses_a_gate_for_it(own: Path, model: str) -> None:
    done = truthgate(
        "sweep", str(own), "--model", "gated_llava", "--model_args", model, "--tasks", "scenes_random",
        "--lam", "0.2,-6", "--norm", "minmax", "--site", "pre", "--limit", "12", "--rest_limit", "0",
        "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    recommended = TruthScores.load(own).metadata["recommended"]
    values = {point["lam"]: point["value"] for point in recommended["points"]}
    assert values[0] > 0.9 > values[-6.0]  # a gate that reverses heads breaks the model
