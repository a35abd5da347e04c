"""The `truthgate` program in this process, which saves the seconds that torch takes to import."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.cli import console as terminal
from truthgate_eval.cli import main as cli
from truthgate_eval.gating.scores import TruthScores


@dataclass
class Done:
    """What a finished command left, as in `subprocess.CompletedProcess`."""

    returncode: int
    stdout: str
    stderr: str


def truthgate(*arguments: str, cwd: Path | None = None) -> Done:
    """Run `truthgate ARGUMENTS` in the folder `cwd`, with output 200 characters wide."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.chdir(cwd or "."), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        width, terminal.console.width = terminal.console.width, 200
        try:
            with mock.patch.object(sys, "argv", ["truthgate", *arguments]):
                cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
        finally:
            terminal.console.width = width
    return Done(code, out.getvalue(), err.getvalue())


def probe_weights(model_args: str, data: str, folder: Path) -> NDArray[np.float32]:
    """The probes' directions after `truthgate probe` on 12 documents of HaluEval-QA in the folder `data`."""
    done = truthgate(
        "probe", "--model_args", model_args, "--tasks", "probe_halueval_qa", "--device", "cpu", "--limit", "12",
        "--folds", "1", "--metadata", json.dumps({"halueval_path": data}), "--output", "probed.npz", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    weights = TruthScores.load(folder / "probed.npz").probe_weight
    assert weights is not None
    return weights


def probe(checkpoint: str, data: str, *more: str, cwd: Path) -> Done:
    """Run `truthgate probe` on HaluEval-QA in the folder `data`, on the CPU."""
    return truthgate(
        "probe", "--model_args", f"pretrained={checkpoint}", "--tasks", "probe_halueval_qa", "--device", "cpu",
        "--metadata", json.dumps({"halueval_path": data}), *more, cwd=cwd,
    )  # fmt: skip
