"""`truthgate probe` in two processes: the artifact of one, one who speaks, and one exit status."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import lmms_eval_runs as kit
from helpers.command_line import truthgate
from helpers.launch import launch, nearly, numbers

from truthgate_eval.gating.score_files import ARRAYS
from truthgate_eval.gating.scores import TruthScores

pytestmark = pytest.mark.slow

ATTRIBUTIONS = ("gradient", "divergence", "direct-effect", "copy")
# What two runs of one command differ in.
OF_A_RUN = ("created", "command", "seconds")
# Runs `truthgate` several times in each process, and writes down the exit status of each run.
SCRIPT = """
import json, os, sys
from pathlib import Path
from truthgate_eval.cli.main import main

rank = int(os.environ["RANK"])
runs, broken = json.loads(Path("runs.json").read_text())
if broken:  # the second process fails in the middle of its work
    from truthgate_eval.errors import ModelError
    from truthgate_eval.probing import capture
    original = capture._run_group
    def fail(*args):
        if rank == 1:
            raise ModelError("only the second process fails")
        return original(*args)
    capture._run_group = fail
status = []
for arguments in runs:
    sys.argv = ["truthgate", *arguments]
    try:
        main()
        status.append(0)
    except SystemExit as stop:
        status.append(stop.code or 0)
Path(f"status_{rank}.json").write_text(json.dumps(status))
sys.exit(max(status))
"""


def in_two_processes(
    folder: Path, runs: list[list[str]], *, broken: bool = False
) -> tuple[list[int], str, str]:
    """The exit status of each run, which both processes must have, and what was printed."""
    (folder / "runs.json").write_text(json.dumps([runs, broken]))
    (folder / "script.py").write_text(SCRIPT)
    done = launch("script.py", cwd=folder)
    assert (folder / "status_0.json").exists(), done.stderr[-3000:]
    status = [json.loads((folder / f"status_{rank}.json").read_text()) for rank in (0, 1)]
    assert status[0] == status[1], done.stderr
    assert done.returncode == (1 if max(status[0]) else 0), done.stderr
    return status[0], done.stdout, done.stderr


def assert_same_artifact(found: Path, expected: Path) -> None:
    ours, one = TruthScores.load(found), TruthScores.load(expected)
    for name in ARRAYS:
        of_ours, of_one = getattr(ours, name), getattr(one, name)
        assert (of_ours is None) == (of_one is None), name
        if of_one is not None:
            np.testing.assert_allclose(of_ours, of_one, rtol=1e-6, atol=1e-6, err_msg=name)
    for of_ours, of_one in ((ours.controls, one.controls), (ours.control_stderr, one.control_stderr)):
        assert of_ours.keys() == of_one.keys()
        for name, values in of_one.items():
            np.testing.assert_allclose(of_ours[name], values, rtol=1e-6, atol=1e-6, err_msg=name)
    same = [{k: v for k, v in artifact.metadata.items() if k not in OF_A_RUN} for artifact in (ours, one)]
    assert numbers(same[0]) == nearly(same[1])


def text_run(checkpoint: str, data: str, output: str, *more: str) -> list[str]:
    return [
        "probe", "--model_args", f"pretrained={checkpoint}", "--tasks", "probe_halueval_qa", "--device", "cpu",
        "--metadata", json.dumps({"halueval_path": data}), "--output", output, "--limit", "11",
        "--batch_size", "2", *more,
    ]  # fmt: skip


PROBES = {
    "post": ("--solver", "newton", "--control", "shuffled-labels", "--control", "surface"),
    "pre": (
        "--site",
        "pre",
        "--solver",
        "newton",
        "--memory",
        "0",
        "--control",
        "no-context",
        "--seeds",
        "2",
    ),
}


def test_a_text_models_artifacts_are_those_of_one_process(
    checkpoint: str, halueval_folder: str, tmp_path: Path
) -> None:
    options = PROBES | {kind: ("--score", kind) for kind in ATTRIBUTIONS}
    runs = [text_run(checkpoint, halueval_folder, f"{name}.npz", *more) for name, more in options.items()]
    two, one = tmp_path / "two", tmp_path / "one"
    two.mkdir(), one.mkdir()
    status, out, err = in_two_processes(two, runs)
    assert status == [0] * len(runs), err
    lines = []
    for name, run in zip(options, runs, strict=True):
        done = truthgate(*run, cwd=one)
        assert done.returncode == 0, done.stderr
        assert_same_artifact(two / f"{name}.npz", one / f"{name}.npz")
        lines += done.stdout.splitlines()
    assert len(out.splitlines()) == len(lines)  # the second process has printed nothing
    assert not list(two.glob(".*"))


def test_a_vision_language_models_artifacts_are_those_of_one_process(
    vlm_checkpoint: Callable[[str], str], tmp_path: Path
) -> None:
    tasks = kit.save_tasks(tmp_path / "tasks", 9)
    common = ["probe", "--model", "vlm", "--model_args", f"pretrained={vlm_checkpoint('llava')}", "--device", "cpu",
              "--tasks", "tiny_choice", "--include_path", str(tasks), "--batch_size", "2"]  # fmt: skip
    options = {"post": ("--solver", "newton"), "divergence": ("--score", "divergence")}
    runs = [[*common, "--output", f"{name}.npz", *more] for name, more in options.items()]
    two, one = tmp_path / "two", tmp_path / "one"
    two.mkdir(), one.mkdir()
    status, _, err = in_two_processes(two, runs)
    assert status == [0, 0], err
    for name, run in zip(options, runs, strict=True):
        done = truthgate(*run, cwd=one)
        assert done.returncode == 0, done.stderr
        assert_same_artifact(two / f"{name}.npz", one / f"{name}.npz")


def test_mistakes_end_both_processes_with_one_line(
    checkpoint: str, halueval_folder: str, tmp_path: Path
) -> None:
    runs = [
        text_run(checkpoint, halueval_folder, "a.npz", "--score", "learned"),
        text_run(checkpoint, halueval_folder, "a.npz", "--limit", "-3"),
        text_run("/nowhere/model", halueval_folder, "a.npz"),
    ]
    status, out, err = in_two_processes(tmp_path, runs)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == [1, 1, 1] and out == ""
    # The launcher's own traceback says that a process failed; none leads through this package.
    assert not [
        line for line in err.splitlines() if line.lstrip().startswith("File ") and "truthgate_eval" in line
    ]
    assert errors[0] == (
        "error: truthgate probe --score learned runs in one process: start it without accelerate launch or torchrun"
    )
    assert len(errors) == 3 and "--limit" in errors[1] and "/nowhere/model" in errors[2]
    assert not (tmp_path / "a.npz").exists()


def test_an_error_of_one_process_ends_both_with_its_line(
    checkpoint: str, halueval_folder: str, tmp_path: Path
) -> None:
    status, _, err = in_two_processes(tmp_path, [text_run(checkpoint, halueval_folder, "a.npz")], broken=True)
    assert status == [1] and err.count("error: only the second process fails\n") == 1
    assert not (tmp_path / "a.npz").exists()


def test_the_module_runs_under_accelerate_launch(
    checkpoint: str, halueval_folder: str, tmp_path: Path
) -> None:
    done = launch("-m", "truthgate_eval", *text_run(checkpoint, halueval_folder, "a.npz"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()  # of one process
    assert (
        len(lines) == 3 and lines[0].endswith("-> a.npz") and lines[2].startswith("the model's own answers")
    )
    assert os.listdir(tmp_path) == ["a.npz"]
