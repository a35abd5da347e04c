"""`truthgate demo`: the main job on a real small model and real data, by the ordinary commands.

Each step is a command that is printed and then run as a user would run it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from truthgate_eval.assets import SMALL_MODEL, resolve_pretrained
from truthgate_eval.errors import TruthGateError

_METRICS = ("acc", "f1", "precision", "recall", "yes_ratio", "unparsed")


def run_demo(console: Console, folder: Path | None, *, documents: int, limit: int) -> None:
    """Probe the packaged model, show its scores, and evaluate it vanilla and gated.

    Args:
        console: Where to print.
        folder: Keeps the results; None takes a temporary folder and says where it is.
        documents: HaluEval-QA documents to probe on, two sequences each.
        limit: Documents to evaluate on.

    Raises:
        TruthGateError: A step failed; the message names its command.
    """
    folder = folder or Path(tempfile.mkdtemp(prefix="truthgate-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    console.rule("The model: SmolLM2-135M-Instruct, from its Python package")
    resolve_pretrained(SMALL_MODEL)
    scores = folder / "scores.npz"
    console.rule(f"1. Which heads tell truth from hallucination? ({documents} HaluEval questions)")
    probe = ["probe", "--tasks", "probe_halueval_qa", "--limit", str(documents), "--output", str(scores)]
    _run(console, "truthgate", *probe)
    _run(console, "truthgate", "show", str(scores), "--top", "5", "--plot", str(folder / "heat_map.png"))
    console.rule(f"2. HaluEval-QA, vanilla and gated ({limit} questions that were not probed)")
    metadata = json.dumps({"exclude_rows_of": str(scores)})
    gates = {"vanilla": "scores=none", "gated": f"scores={scores},lam=4.5,norm=centered"}
    for name, gate in gates.items():
        arguments = ["--model", "gated_hf", "--model_args", gate, "--tasks", "halueval_qa"]
        arguments += ["--limit", str(limit), "--batch_size", "8", "--metadata", metadata]
        _run(console, "lm_eval", *arguments, "--output_path", str(folder / name), quiet=True)
    console.rule("What came out")
    console.print(_leaderboard(folder, list(gates), limit))
    console.print(
        "A difference of a few points on this many questions is noise, and a 135M model is a poor judge "
        "of hallucinations: the demo shows that everything runs, not that the method works.\n"
        f"All results are in {folder}"
    )


def _run(console: Console, program: str, *arguments: str, quiet: bool = False) -> None:
    """Print a command and run it; `quiet` keeps its log for the case that it fails."""
    shown = [f"'{word}'" if any(c in word for c in '{" ') else word for word in arguments]
    console.print(f"\n[bold]$ {program} {' '.join(shown)}[/bold]", soft_wrap=True, highlight=False)
    module = {"truthgate": "truthgate_eval", "lm_eval": "lm_eval"}[program]
    command = [sys.executable, "-m", module, *arguments]
    waiting = console.status("running ...") if quiet else contextlib.nullcontext()
    with waiting:
        done = subprocess.run(command, capture_output=quiet, text=True, check=False)
    if done.returncode:
        tail = (done.stderr or "").strip().splitlines()[-1:] or ["see above"]
        raise TruthGateError(f"the step `{program} {' '.join(shown)}` failed: {tail[0]}")


def _leaderboard(folder: Path, names: list[str], limit: int) -> Table:
    table = Table(title=f"HaluEval-QA, n = {limit}", title_justify="left")
    table.add_column("model")
    for metric in _METRICS:
        table.add_column(metric, justify="right")
    for name in names:
        values = _results(folder / name)
        table.add_row(name, *(f"{values[metric]:.3f}" for metric in _METRICS))
    return table


def _results(folder: Path) -> dict[str, Any]:
    """The metrics of the newest results file of a run, without lm-eval's filter names."""
    files = sorted(folder.rglob("results_*.json"))
    if not files:
        raise TruthGateError(f"lm_eval wrote no results file below {folder}")
    results = json.loads(files[-1].read_text())["results"]["halueval_qa"]
    return {key.split(",")[0]: value for key, value in results.items()}
