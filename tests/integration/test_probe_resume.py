"""`truthgate probe` after an interruption: the same artifact, `--fresh`, and what is refused before a model loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.command_line import Done, probe, truthgate

from truthgate_eval.gating.score_files import ARRAYS
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.probing import kept_batches

OPTIONS = ("--limit", "11", "--batch_size", "1", "--folds", "1", "--solver", "newton", "--output", "a.npz")


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every finished batch is written at once."""
    monkeypatch.setattr(kept_batches, "_SECONDS", 0.0)
    monkeypatch.setattr(kept_batches, "_SHARE", 1e9)


def assert_equal(found: Path, expected: Path) -> None:
    """The arrays bit for bit, and all metadata but the time."""
    ours, plain = TruthScores.load(found), TruthScores.load(expected)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(ours, name), getattr(plain, name), err_msg=name)
    for name, values in plain.controls.items():
        np.testing.assert_array_equal(ours.controls[name], values, err_msg=name)
        np.testing.assert_array_equal(ours.control_stderr[name], plain.control_stderr[name], err_msg=name)
    without_time = [{k: v for k, v in one.metadata.items() if k != "created"} for one in (ours, plain)]
    assert without_time[0] == without_time[1]


@pytest.mark.slow
def test_the_same_command_continues_and_fresh_begins_anew(
    checkpoint: str, halueval_folder: str, tmp_path: Path, at_once: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*more: str) -> Done:
        return probe(checkpoint, halueval_folder, *OPTIONS, *more, cwd=tmp_path)

    add, folder = kept_batches.KeptBatches.add, tmp_path / "a.npz.partial"

    def kill(self: Any, number: int, *more: Any) -> None:
        add(self, number, *more)
        if number == 2:
            raise Killed

    def interrupt() -> None:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(kept_batches.KeptBatches, "add", kill)
            run()
        assert folder.is_dir()

    assert run().returncode == 0
    (tmp_path / "a.npz").rename(tmp_path / "plain.npz")
    interrupt()
    done = run()
    assert done.returncode == 0 and "of 22 sequences have run already" in done.stderr
    assert_equal(tmp_path / "a.npz", tmp_path / "plain.npz")
    interrupt()
    done = run("--fresh")
    assert done.returncode == 0 and "have run already" not in done.stderr
    assert "a.npz exists: it is replaced when this probe is done" in done.stderr
    assert_equal(tmp_path / "a.npz", tmp_path / "plain.npz")
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "plain.npz"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--limit", "0"), "--limit=0: expected a number of documents"),
        (("--limit", "-5"), "--limit=-5: expected"),
        (("--limit", "nan"), "--limit=nan: expected"),
        (("--seed", "-1"), "seed=-1: expected 0 to"),
        (("--include_path", "nowhere"), "--include_path nowhere is no folder"),
        (("--output", "/proc/a.npz"), "/proc/a.npz cannot be written"),
        (("--output", "folder.npz"), "folder.npz is a folder"),
    ],
)
def test_a_mistake_is_one_line_before_the_model_is_loaded(
    options: tuple[str, str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.npz").mkdir()
    done = truthgate(
        "probe", "--model_args", "pretrained=/nowhere", "--tasks", "probe_halueval_qa", "--output", "a.npz",
        *options, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1 and f"error: {message}" in done.stderr and "/nowhere" not in done.stderr
    assert done.stderr.count("\n") == 1


# Loads everything once, and forks for each run. Runs end by SIGKILL at one moment each, the last one does not.
SCRIPT = """
import os, signal, sys
from truthgate_eval.cli import probe_jobs
from truthgate_eval.cli.main import main
from truthgate_eval.files import writing
from truthgate_eval.probing import kept_batches, run

kept_batches._SECONDS, kept_batches._SHARE = 0.0, 1e9

def kill_at(owner, name, call, after=True):
    original, calls = getattr(owner, name), [0]
    def patched(*args, **options):
        calls[0] += 1
        if calls[0] == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        found = original(*args, **options)
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    setattr(owner, name, patched)

moments = {
    "the first batch": lambda: kill_at(kept_batches.KeptBatches, "add", 1),
    "a shard that is not renamed yet": lambda: kill_at(writing.os, "replace", 3, after=False),
    "a later batch": lambda: kill_at(kept_batches.KeptBatches, "add", 2),
    "the fit": lambda: kill_at(run, "repeat_cross_validation", 1, after=False),
    "the control": lambda: kill_at(kept_batches.KeptBatches, "add", 1),
    "the model's own answers": lambda: kill_at(probe_jobs, "measure_own_answers", 1, after=False),
    "no moment": lambda: None,
}
for moment, patch in moments.items():
    print(f"--- {moment}", file=sys.stderr, flush=True)
    child = os.fork()
    if not child:
        patch()
        main()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    expected = 0 if moment == "no moment" else signal.SIGKILL
    assert status == expected, (moment, status)
"""


@pytest.mark.slow
def test_a_probe_that_is_killed_again_and_again_ends_in_the_undisturbed_artifact(
    checkpoint: str, halueval_folder: str, tmp_path: Path
) -> None:
    control = ("--control", "no-context")
    done = probe(checkpoint, halueval_folder, *OPTIONS, *control, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "a.npz").rename(tmp_path / "plain.npz")
    arguments = [
        "probe", "--model_args", f"pretrained={checkpoint}", "--tasks", "probe_halueval_qa", "--device", "cpu",
        "--metadata", json.dumps({"halueval_path": halueval_folder}), *OPTIONS, *control,
    ]  # fmt: skip
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    counts = [line.split(": ")[-1] for line in found.stderr.splitlines() if "have run already" in line]
    assert counts[-2:] == 2 * ["22 of 22 sequences have run already"], found.stderr
    assert_equal(tmp_path / "a.npz", tmp_path / "plain.npz")
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "plain.npz"]
