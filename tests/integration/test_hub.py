"""`scores=hf://...` through both harnesses' own argument parsers and command lines, and through a sweep."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import lmms_eval_runs as kit
from helpers.command_line import truthgate
from helpers.hub import TOKEN, Hub, environment, running_hub, use_hub

from truthgate_eval.errors import ScoresError
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.lm_eval.model import GatedHF
from truthgate_eval.harness.lmms_eval.model import GatedVLM

BIN = Path(sys.executable).parent
VALUES = np.random.default_rng(0).uniform(0.5, 1.0, (3, 4))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    metadata = {"model": "owner/base", "task": "t", "site": "post"}
    content = TruthScores(VALUES, metadata=metadata).save(tmp_path / "a.npz").read_bytes()
    with running_hub() as hub:
        repository = hub.add("owner/repo", {"a.npz": content})
        repository.refs["v1"] = repository.refs["main"]
        yield hub


def expected(hub: Hub, tmp_path: Path, revision: str | None) -> dict[str, Any]:
    found = {
        "repo": "owner/repo", "file": "a.npz", "revision": revision,
        "commit": hub.repositories["owner/repo"].refs["main"],
        "file_sha256": hashlib.sha256((tmp_path / "a.npz").read_bytes()).hexdigest(),
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize("harness", ["lm-eval", "lmms-eval"])
def test_an_address_survives_the_parsers_of_model_arguments(
    harness: str, hub: Hub, tmp_path: Path, checkpoint: str, vlm_checkpoint: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    use_hub(hub.url, tmp_path / "cache", monkeypatch)

    def load(arguments: str) -> Any:
        if harness == "lm-eval":
            more = {"device": "cpu", "batch_size": 1}
            return GatedHF.create_from_arg_string(f"pretrained={checkpoint},{arguments}", more)
        return GatedVLM.create_from_arg_string(f"pretrained={vlm_checkpoint('llava')},device=cpu,{arguments}")

    checksum = hashlib.sha256((tmp_path / "a.npz").read_bytes()).hexdigest()
    for source, revision in (
        (f"hf://owner/repo@v1/a.npz#sha256={checksum}", "v1"),
        ("shuffled:hf://owner/repo/a.npz:3", None),
    ):
        gate = load(f"scores={source},lam=1,norm=centered").get_model_info()["gate"]
        assert gate["scores"] == source and gate["lam"] == 1.0
        assert gate["hub"] == expected(hub, tmp_path, revision)
    with pytest.raises(ScoresError, match="has no revision 'v2'"):
        load("scores=hf://owner/repo@v2/a.npz,lam=1")


@pytest.mark.slow
def test_lm_evals_command_line_records_commit_and_checksum(
    hub: Hub, tmp_path: Path, checkpoint: str, halueval_folder: str
) -> None:
    hub.repositories["owner/repo"].private = True

    def run(scores: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [
            str(BIN / "lm_eval"), "--model", "gated_hf", "--model_args",
            f"pretrained={checkpoint},scores={scores},lam=1", "--tasks", "halueval_qa", "--limit", "4",
            "--metadata", json.dumps({"halueval_path": halueval_folder}), "--output_path", str(tmp_path / "out"),
            "--device", "cpu",
        ]  # fmt: skip
        variables = {**os.environ, **environment(hub.url, tmp_path / "home", TOKEN), **more}
        return subprocess.run(
            command, env=variables, capture_output=True, text=True, timeout=300, check=False
        )

    done = run("hf://owner/repo@v1/a.npz")
    assert done.returncode == 0, done.stderr[-2000:]
    [file] = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(file.read_text())["config"]["gate"]["hub"] == expected(hub, tmp_path, "v1")
    assert TOKEN not in file.read_text() + done.stdout + done.stderr
    # Only the file that the command named is fetched, and nothing is asked beside it.
    assert hub.fetched() == ["owner/repo/a.npz"]
    assert {line.split(" ")[1] for line in hub.requests} == {"/owner/repo/resolve/v1/a.npz"}
    # Without the cache, in which the file is already.
    done = run("hf://owner/repo/a.npz", HF_TOKEN="hf_SomeoneElse", HF_HOME=str(tmp_path / "other"))
    assert done.returncode != 0 and "no repository owner/repo, or it is private" in done.stderr
    assert "Traceback" not in done.stderr and "hf_SomeoneElse" not in done.stderr + done.stdout


@pytest.mark.slow
def test_lmms_evals_command_line_records_commit_and_checksum(
    hub: Hub, tmp_path: Path, vlm_checkpoint: Callable[[str], str]
) -> None:
    tasks = kit.save_tasks(tmp_path / "tasks", 3)

    def run(scores: str) -> subprocess.CompletedProcess[str]:
        command = [
            str(BIN / "lmms_eval"), "--model", "gated_llava", "--model_args",
            f"pretrained={vlm_checkpoint('llava')},scores={scores},lam=1,device=cpu", "--tasks", kit.TASK,
            "--include_path", str(tasks), "--output_path", str(tmp_path / "out"),
        ]  # fmt: skip
        variables = os.environ | environment(hub.url, tmp_path / "home")
        return subprocess.run(
            command, env=variables, capture_output=True, text=True, timeout=300, check=False
        )

    done = run("hf://owner/repo@main/a.npz")
    assert done.returncode == 0, done.stderr[-2000:]
    [file] = (tmp_path / "out").rglob("*_results.json")
    assert json.loads(file.read_text())["gate"]["hub"] == expected(hub, tmp_path, "main")
    assert {line.split(" ")[1] for line in hub.requests} == {"/owner/repo/resolve/main/a.npz"}
    done = run("hf://owner/none/a.npz")
    assert done.returncode != 0 and "no repository owner/none" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_sweep_of_fetched_scores_records_where_they_are_from(
    hub: Hub, tmp_path: Path, checkpoint: str, halueval_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(hub.url, tmp_path / "cache", monkeypatch)
    (tmp_path / "halueval").symlink_to(halueval_folder)
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path))
    copied = truthgate("import", "hf://owner/repo@v1/a.npz", "-o", "mine.npz", cwd=tmp_path)
    assert copied.returncode == 0, copied.stderr
    done = truthgate(
        "sweep", "mine.npz", "--model_args", f"pretrained={checkpoint}", "--tasks", "halueval_qa_select",
        "--lam", "-1,1,5", "--norm", "minmax", "--limit", "8", "--rest_limit", "8", "--device", "cpu", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = TruthScores.load(tmp_path / "mine.npz").metadata
    assert found["hub"] == expected(hub, tmp_path, "v1") and "recommended" in found
    runs = [
        json.loads(path.read_text()) for path in (tmp_path / "mine.sweep" / "rest").rglob("results_*.json")
    ]
    gates = [run["config"]["gate"] for run in runs if run["config"]["gate"]["kind"] == "scores"]
    chosen = found["recommended"]["lam"]
    assert [gate["hub"] for gate in gates] == ([] if chosen == 0 else [expected(hub, tmp_path, "v1")])
