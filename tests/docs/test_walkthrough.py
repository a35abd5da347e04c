"""docs/walkthrough.md follows the code: its steps are few, and a run calls the functions that they name."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "walkthrough.md"
MOST_STEPS = 12
NAME = re.compile(r"`([a-z_]+(?:\.\w+){2,})`")
RUNS = {
    "From a HaluEval document to the artifact": (
        "truthgate_eval.cli.main",
        ["truthgate", "probe", "--tasks", "probe_halueval_qa", "--limit", "6", "--folds", "2", "--output", "scores.npz"],
    ),
    # A task whose images come with the package, for POPE's; it is answered and scored the same way.
    "From a POPE question to its metric": (
        "lmms_eval.cli.dispatch",
        [
            "lmms_eval", "--model", "gated_vlm", "--tasks", "scenes_random", "--limit", "2", "--model_args",
            "scores=smollm2-135m-instruct__halueval-qa,lam=0.3",
        ],
    ),
}  # fmt: skip
# Runs a command line in this process and writes the names of all functions of the package that are called.
TRACE = """
import importlib, json, sys, threading
# Before calls are noted, which makes imports slow.
import datasets, sklearn.linear_model, torch, transformers
module, command, output = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
called = {}

def note(frame, event, argument):
    code = frame.f_code
    if event == "call" and "/truthgate_eval/" in code.co_filename:
        path = code.co_filename.rsplit("/truthgate_eval/", 1)[1].removesuffix(".py").replace("/", ".")
        called.setdefault(f"{path}.{code.co_qualname}")

sys.argv = command
threading.setprofile(note)  # lmms-eval scores answers in threads
sys.setprofile(note)
try:
    importlib.import_module(module).main()
except SystemExit:
    pass
finally:
    sys.setprofile(None)
    open(output, "w").write(json.dumps(list(called)))
"""


def steps(heading: str) -> list[str]:
    """The numbered steps below a heading."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\d+\. .*(?:\n +.*)*", section, flags=re.MULTILINE)


@pytest.mark.parametrize("heading", RUNS)
def test_a_walkthrough_has_at_most_twelve_steps_and_each_names_a_function(heading: str) -> None:
    found = steps(heading)
    assert 5 < len(found) <= MOST_STEPS
    assert all(NAME.search(step) for step in found)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="code objects have no qualified name before Python 3.11"
)
@pytest.mark.parametrize("heading", RUNS)
def test_a_run_calls_the_functions_that_the_walkthrough_names(heading: str, tmp_path: Path) -> None:
    module, command = RUNS[heading]
    output = tmp_path / "called.json"
    done = subprocess.run(
        [sys.executable, "-c", TRACE, module, json.dumps(command), str(output)],
        cwd=tmp_path, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    called = json.loads(output.read_text())
    named = [name for step in steps(heading) for name in NAME.findall(step)]
    functions = [name for name in named if name.rsplit(".", 1)[1].islower()]
    assert len(functions) > MOST_STEPS
    assert [name for name in functions if name not in called] == [], done.stderr[-2000:]
