"""Commands with local inputs open no connection, also where the hub may be used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import result_files

# Runs several commands in one process, which records every address and refuses it.
SCRIPT = """
import json, os, socket, sys
asked = []
def refuse(name):
    original = getattr(socket.socket, name)
    def connect(self, address, *more):
        if self.family == getattr(socket, "AF_UNIX", None):
            return original(self, address, *more)
        asked.append(str(address))
        raise OSError(101, "Network is unreachable")
    return connect
for name in ("connect", "connect_ex"):
    setattr(socket.socket, name, refuse(name))
def look_up(host, *more, **options):
    asked.append(str(host))
    raise socket.gaierror(-3, "Temporary failure in name resolution")
socket.getaddrinfo = socket.gethostbyname = look_up
from truthgate_eval.cli import main as cli
for arguments in json.loads(sys.argv[1]):
    before = len(asked)
    sys.argv = ["truthgate", *arguments]
    try:
        cli.main()
    except SystemExit as stop:
        assert stop.code in (0, None), arguments
    print("ASKED", json.dumps([arguments[0], asked[before:]]))
import huggingface_hub  # what asks the hub, so that it is known to be seen
try:
    huggingface_hub.model_info("owner/model")
except Exception:
    print("ASKED", json.dumps(["control", asked[-1:]]))
"""


def run(commands: list[list[str]], folder: Path) -> dict[str, list[str]]:
    """The addresses that each command asked for."""
    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")
    environment = {name: value for name, value in os.environ.items() if name not in offline}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)], cwd=folder, env=environment, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.removeprefix("ASKED ") for line in done.stdout.splitlines() if line.startswith("ASKED ")]
    return dict(json.loads(line) for line in lines)


@pytest.mark.slow
def test_local_models_files_and_runs_are_used_without_a_connection(
    checkpoint: str, halueval_folder: str, tmp_path: Path
) -> None:
    golds = result_files.golds(8)
    runs = [
        result_files.lm_eval_run(tmp_path / "a", {"sums": result_files.answers(golds, [0])}),
        result_files.lm_eval_run(tmp_path / "b", {"sums": golds}, gate=result_files.LLM),
    ]
    quick = ["--permutations", "9", "--resamples", "100"]
    asked = run(
        [
            ["probe", "--model_args", f"pretrained={checkpoint}", "--tasks", "probe_halueval_qa", "--limit", "12",
             "--folds", "1", "--device", "cpu", "--metadata", json.dumps({"halueval_path": halueval_folder}),
             "-o", "a.npz"],
            ["show", "a.npz", "--plot", "a.png"],
            ["export", "--format", "peft", "--model_args", f"pretrained={checkpoint},scores=a.npz,lam=1,norm=centered",
             "-o", "adapter"],
            ["import", "adapter", "-o", "b.npz"],
            ["correlate", "a=a.npz", "b=b.npz", "--permutations", "9"],
            ["compare", *map(str, runs), "--resamples", "100"],
            ["report", *map(str, runs), "a.npz", *quick, "-o", "report.html"],
            ["doctor"],
        ],
        tmp_path,
    )  # fmt: skip
    assert asked.pop("control") != []
    assert len(asked) == 8 and all(addresses == [] for addresses in asked.values()), asked
