"""lmms-eval's command line with our models.

Its results file is what the tests read, since it may exit with status 0 after a failure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import lmms_eval_runs as kit

from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.lmms_eval.model import GatedVLM

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
PROGRAMS = {
    "lmms_eval": [str(BIN / "lmms_eval")],
    "lmms-eval": [str(BIN / "lmms-eval")],
    "python -m": [sys.executable, "-m", "lmms_eval"],
    "accelerate": [
        str(BIN / "accelerate"), "launch", "--cpu", "--num_processes", "1", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "lmms_eval",
    ],
    "two processes": [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "lmms_eval"],
}  # fmt: skip
NUMBER = 6


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kit.save_tasks(tmp_path_factory.mktemp("tasks"), NUMBER)


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).uniform(0.5, 1.0, (3, 4))
    return TruthScores(values, metadata={"model": "base", "site": "post"}).save(tmp_path / "base.npz")


def run(
    program: str, tasks: Path, out: Path, model_args: str, *more: str
) -> subprocess.CompletedProcess[str]:
    command = [
        *PROGRAMS[program], "--model", "gated_llava", "--model_args", model_args, "--tasks", kit.TASK,
        "--include_path", str(tasks), "--output_path", str(out), "--log_samples", *more,
    ]  # fmt: skip
    environment = os.environ | {"HF_DATASETS_CACHE": str(out.parent / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=out.parent, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def results_in(out: Path) -> tuple[dict[str, Any], dict[int, str]]:
    """The results file, and every document's answer."""
    [file] = out.glob("*/*_results.json")
    [samples] = out.glob(f"*/*_samples_{kit.TASK}.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    return json.loads(file.read_text()), {row["doc_id"]: row["filtered_resps"] for row in rows}


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_way_to_start_it_gives_the_same_results_file(
    program: str, tasks: Path, scores: Path, tmp_path: Path, vlm_checkpoint: Callable[[str], str]
) -> None:
    folder = vlm_checkpoint("llava")
    arguments = f"pretrained={folder},scores={scores},lam=0.3,device=cpu"
    done = run(program, tasks, tmp_path / "out", arguments, "--batch_size", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    printed = done.stdout + done.stderr
    for noise in ("Loading weights", "Building contexts", "Postprocess", "Running on rank"):
        assert noise not in printed
    results, answers = results_in(tmp_path / "out")
    model = GatedVLM(folder, device="cpu", scores=str(scores), lam=0.3)
    docs = [json.loads(line) for line in (tasks / "data.jsonl").read_text().splitlines()]
    expected = kit.generate(model, docs, {"max_new_tokens": 6})
    assert answers == {n: text.strip() for n, text in enumerate(expected)}
    assert results["gate"] == model.gate_settings.describe()
    assert results["gate"]["sha256"] == TruthScores.load(scores).fingerprint
    assert results["results"][kit.TASK]["letters,none"] == np.mean([len(text.strip()) for text in expected])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "pretrained={model},scores={other},lam=1",
            "error: scores of stranger have 4 layers x 8 heads, but ",
        ),
        (
            "pretrained={model},scores=none,peft=/nowhere/adapter",
            "error: adapter '/nowhere/adapter' of model ",
        ),
        ("pretrained=/nowhere/model,scores=none", "error: there is no model folder /nowhere/model"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_status_1(
    arguments: str, message: str, tasks: Path, tmp_path: Path, vlm_checkpoint: Callable[[str], str]
) -> None:
    other = TruthScores(np.ones((4, 8)), metadata={"model": "stranger"}).save(tmp_path / "other.npz")
    done = run(
        "lmms_eval", tasks, tmp_path / "out", arguments.format(model=vlm_checkpoint("llava"), other=other)
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(message)
    assert "Traceback" not in done.stdout + done.stderr
    assert not list((tmp_path / "out").glob("*/*"))


def test_a_truncated_image_ends_the_run(tmp_path: Path, vlm_checkpoint: Callable[[str], str]) -> None:
    tasks = kit.save_tasks(tmp_path / "tasks", NUMBER)
    image = tasks / "0_0.png"
    image.write_bytes(image.read_bytes()[:-400])
    arguments = f"pretrained={vlm_checkpoint('llava')},scores=none,batch_size=4"
    done = run("python -m", tasks, tmp_path / "out", arguments)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: task '{kit.TASK}', document 0: its picture cannot be read: OSError: ")
    assert not list((tmp_path / "out").glob("*/*_results.json"))
