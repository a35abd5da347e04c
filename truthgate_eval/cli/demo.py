"""`truthgate demo`: the main job on a real small family and real data, by the ordinary commands.

Each step is a command that is printed and then run as a user would run it.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from truthgate_eval.errors import TruthGateError
from truthgate_eval.packaged.scenes_llava import SCENES_LLAVA, resolve_scenes_llava
from truthgate_eval.packaged.smollm2 import SMOLLM2, resolve_smollm2

_MODULES = {"truthgate": "truthgate_eval", "lm_eval": "lm_eval", "lmms_eval": "lmms_eval"}


def run_demo(console: Console, folder: Path | None, *, documents: int, limit: int) -> None:
    """Probe the packaged base and its child, gate both, and say how much their truthful heads agree.

    Args:
        console: Where to print.
        folder: Keeps the results; None takes a temporary folder and says where it is.
        documents: Documents of a task to probe on, two sequences each.
        limit: Documents of a task to evaluate on.

    Raises:
        TruthGateError: A step failed; the message names its command.
    """
    folder = folder or Path(tempfile.mkdtemp(prefix="truthgate-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    console.rule("A family: SmolLM2-135M-Instruct, and its child that sees drawn scenes")
    resolve_smollm2(SMOLLM2)
    resolve_scenes_llava(SCENES_LLAVA)
    demo = _Demo(console, folder, documents, limit)
    demo.base()
    demo.child()
    demo.family()
    console.rule("What came out")
    console.print(
        "On so few questions a difference of a few points is noise, and models this small are poor judges of "
        "hallucinations: the demo shows that everything runs, not that the method works.\n"
        f"All results are in {folder}"
    )


class _Demo:
    """The parts of the demo, in one folder."""

    def __init__(self, console: Console, folder: Path, documents: int, limit: int) -> None:
        self.console, self.folder = console, folder
        self.documents, self.limit = str(documents), str(limit)

    def base(self) -> None:
        """Probe the base on text, and gate it."""
        self.console.rule(f"1. Which heads of the base tell truth? ({self.documents} HaluEval questions)")
        scores = self._path("base-halueval.npz")
        self._probe("--tasks", "probe_halueval_qa", "--output", scores)
        self._run("truthgate", "show", scores, "--top", "5", "--plot", self._path("heat_map.png"))
        self.console.rule(f"2. HaluEval-QA, vanilla and gated ({self.limit} questions that were not probed)")
        metadata = json.dumps({"exclude_rows_of": scores})
        gates = {"vanilla": "scores=none", "gated": f"scores={scores},lam=4.5,norm=centered"}
        for name, gate in gates.items():
            self._evaluate(
                "lm_eval", "gated_hf", gate, "halueval_qa", f"halueval-{name}",
                "--batch_size", "8", "--metadata", metadata,
            )  # fmt: skip
        self._compare("halueval", gates)

    def child(self) -> None:
        """Probe the child with its pictures, and gate it with the base's scores and with its own."""
        self.console.rule(
            f"3. The child's heads, with pictures ({self.documents} questions), and with text alone"
        )
        own = self._path("child-scenes.npz")
        self._probe("--model", "vlm", "--tasks", "probe_scenes", "--output", own)
        self._probe(
            "--model", "vlm", "--tasks", "probe_halueval_qa", "--image", "none",
            "--output", self._path("child-halueval.npz"),
        )  # fmt: skip
        self.console.rule(
            f"4. Polls about scenes, gated by base and child ({self.limit} of each of three kinds)"
        )
        gates = {
            "vanilla": "scores=none",
            "base-scores": f"scores={self._path('base-halueval.npz')},lam=0.3",
            "own-scores": f"scores={own},lam=0.3",
        }
        for name, gate in gates.items():
            self._evaluate("lmms_eval", "gated_vlm", gate, "scenes", f"scenes-{name}", "--batch_size", "8")
        self._compare("scenes", gates)

    def family(self) -> None:
        """Correlate all scores."""
        self.console.rule("5. Are the truthful heads the same in the family?")
        names = ("base-halueval", "child-halueval", "child-scenes")
        members = [f"{name}={self._path(f'{name}.npz')}" for name in names]
        self._run("truthgate", "correlate", *members, "--plot", self._path("family.png"))

    def _probe(self, *arguments: str) -> None:
        self._run("truthgate", "probe", *arguments, "--limit", self.documents)

    def _evaluate(self, host: str, model: str, gate: str, task: str, output: str, *more: str) -> None:
        arguments = ["--model", model, "--model_args", gate, "--tasks", task, "--limit", self.limit, *more]
        self._run(host, *arguments, "--log_samples", "--output_path", self._path(output), quiet=True)

    def _compare(self, task: str, names: Iterable[str]) -> None:
        runs = [self._path(f"{task}-{name}") for name in names]
        self._run("truthgate", "compare", *runs, "--published", "none")

    def _path(self, name: str) -> str:
        return str(self.folder / name)

    def _run(self, program: str, *arguments: str, quiet: bool = False) -> None:
        """Print a command and run it; `quiet` keeps its log for the case that it fails."""
        line = shlex.join([program, *arguments])
        self.console.print(f"\n[bold]$ {line}[/bold]", soft_wrap=True, highlight=False)
        command = [sys.executable, "-m", _MODULES[program], *arguments]
        waiting = self.console.status("running ...") if quiet else contextlib.nullcontext()
        with waiting:
            done = subprocess.run(command, capture_output=quiet, text=True, check=False)
        if done.returncode:
            tail = (done.stderr or "").strip().splitlines()[-1:] or ["see above"]
            raise TruthGateError(f"the step `{line}` failed: {tail[0]}")
