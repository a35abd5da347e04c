"""`truthgate demo`: the main steps on a real small family and real data, by the ordinary commands.

Each step is a command that is printed and then run as a user would run it. Each table is followed by one
line that says what its numbers mean.
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
from typing import Literal

from rich.console import Console

from truthgate_eval.analysis.heads.chance import chance_warning
from truthgate_eval.errors import TruthGateError
from truthgate_eval.files import check_folder
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.packaged.models import resolve_packaged
from truthgate_eval.packaged.scenes_llava import SCENES_LLAVA
from truthgate_eval.packaged.smollm2 import SMOLLM2

_MODULES = {"truthgate": "truthgate_eval", "lm_eval": "lm_eval", "lmms_eval": "lmms_eval"}

_COMPARE_READING = (
    "acc is the share of questions answered right, and acc diff its change against vanilla in points. "
    "With p above 0.05, so few questions cannot tell the change from chance"
)
_CORRELATE_READING = (
    "r near 1: the same heads score high in both; near 0: one model's heads say nothing about the other's. "
    "The rows within layers count: over all heads, a profile over layers is enough for a high r. Within "
    "layers, heads hardly repeat at site post, which the demo probes; --site pre tells more (docs/results.md)"
)


def run_demo(console: Console, folder: Path | None, *, documents: int, limit: int) -> None:
    """Probe the packaged language model and its vision child, gate both, and correlate their scores.

    Args:
        console: Where to print.
        folder: Where the results stay; None makes a temporary folder and prints its name.
        documents: Documents of a task to probe on, two sequences each.
        limit: Documents of a task to evaluate on.

    Raises:
        TruthGateError: A step failed; the message names its command.
    """
    folder = folder or Path(tempfile.mkdtemp(prefix="truthgate-demo-"))
    check_folder(folder).mkdir(parents=True, exist_ok=True)
    console.rule("A family: SmolLM2-135M-Instruct, and its child that sees drawn scenes")
    resolve_packaged(SMOLLM2, "text")
    resolve_packaged(SCENES_LLAVA, "image")
    demo = _Demo(console, folder, documents, limit)
    demo.run_base()
    demo.run_child()
    demo.correlate()
    demo.summarize()


def describe_scores(scores: TruthScores) -> str:
    """One line that says what an artifact's truth scores mean.

    Args:
        scores: Scores that are accuracies, so that 0.5 is chance.

    Example:
        >>> import numpy as np
        >>> describe_scores(TruthScores(np.array([[0.5, 0.9]]), metadata={}))
        'the mean head tells right from wrong answers in 70 % of cases, the best in 90 %; 50 % is chance'
        >>> describe_scores(TruthScores(np.array([[0.4, 0.5]]), metadata={"own_answers": {"accuracy": 0.8}}))
        'the mean score is 0.45, not above chance. The model itself finds the right answer likelier in 80 %'
    """
    mean, best = float(scores.scores.mean()), float(scores.scores.max())
    if mean < 0.5 or chance_warning(scores):
        text = f"the mean score is {mean:.2f}, not above chance"
    else:
        text = (
            f"the mean head tells right from wrong answers in {100 * mean:.0f} % of cases, "
            f"the best in {100 * best:.0f} %; 50 % is chance"
        )
    accuracy = scores.metadata.get("own_answers", {}).get("accuracy")
    if accuracy is None:
        return text
    return f"{text}. The model itself finds the right answer likelier in {100 * accuracy:.0f} %"


class _Demo:
    """The steps of the demo, in one folder."""

    def __init__(self, console: Console, folder: Path, documents: int, limit: int) -> None:
        self.console, self.folder = console, folder
        self.documents, self.limit = str(documents), str(limit)

    def run_base(self) -> None:
        """Probe the base on text, and gate it."""
        self.console.rule(f"1. Which heads of the base tell truth? ({self.documents} HaluEval questions)")
        scores = self._path("base-halueval.npz")
        self._probe("--tasks", "probe_halueval_qa", "--output", scores)
        self._run("truthgate", "show", scores, "--top", "5", "--plot", self._path("heat_map.png"))
        self._print_reading(describe_scores(TruthScores.load(scores)))
        self.console.rule(f"2. HaluEval-QA, vanilla and gated ({self.limit} questions that were not probed)")
        metadata = json.dumps({"exclude_rows_of": scores})
        gates = {"vanilla": "scores=none", "gated": f"scores={scores},lam=4.5,norm=centered"}
        for name, gate in gates.items():
            self._evaluate(
                "lm_eval", "gated_hf", gate, "halueval_qa", f"halueval-{name}",
                "--batch_size", "8", "--metadata", metadata,
            )  # fmt: skip
        self._compare("halueval", gates)

    def run_child(self) -> None:
        """Probe the child with its images and with text alone; gate it with the base's scores and its own."""
        self.console.rule(
            f"3. The child's heads, with images ({self.documents} questions), and with text alone"
        )
        own, text = self._path("child-scenes.npz"), self._path("child-halueval.npz")
        self._probe("--model", "vlm", "--tasks", "probe_scenes", "--output", own)
        self._print_reading(f"with images, {describe_scores(TruthScores.load(own))}")
        self._probe(
            "--model", "vlm", "--tasks", "probe_halueval_qa", "--image", "none", "--output", text
        )  # fmt: skip
        self._print_reading(f"with text alone, {describe_scores(TruthScores.load(text))}")
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

    def correlate(self) -> None:
        """Correlate the scores of all three artifacts."""
        self.console.rule("5. Are the truthful heads the same in the family?")
        names = ("base-halueval", "child-halueval", "child-scenes")
        members = [f"{name}={self._path(f'{name}.npz')}" for name in names]
        self._run("truthgate", "correlate", *members, "--plot", self._path("family.png"))
        self._print_reading(_CORRELATE_READING)

    def summarize(self) -> None:
        """Say what the results are worth, and where they are."""
        self.console.rule("What came out")
        self.console.print(
            "On so few questions a difference of a few points is noise, and models this small are poor "
            "judges of hallucinations: the demo shows that everything runs, not that the method works."
        )
        for name, image in (("heat map", "heat_map.png"), ("correlations", "family.png")):
            self._print_line(f"{name + ':':<14}{self._path(image)}")
        self._print_line(f"{'all results:':<14}{self.folder}")

    def _probe(self, *arguments: str) -> None:
        self._run("truthgate", "probe", *arguments, "--limit", self.documents)

    def _evaluate(
        self,
        harness: Literal["lm_eval", "lmms_eval"],
        model: str,
        gate: str,
        task: str,
        output: str,
        *more: str,
    ) -> None:
        arguments = ["--model", model, "--model_args", gate, "--tasks", task, "--limit", self.limit, *more]
        self._run(harness, *arguments, "--log_samples", "--output_path", self._path(output), show=False)

    def _compare(self, task: str, names: Iterable[str]) -> None:
        runs = [self._path(f"{task}-{name}") for name in names]
        self._run("truthgate", "compare", *runs, "--published", "none")
        self._print_reading(_COMPARE_READING)

    def _path(self, name: str) -> str:
        return str(self.folder / name)

    def _print_reading(self, text: str) -> None:
        self.console.print(f"Reading: {text}.", style="italic", highlight=False, markup=False)

    def _print_line(self, line: str) -> None:
        self.console.print(line, soft_wrap=True, highlight=False, markup=False)

    def _run(self, program: str, *arguments: str, show: bool = True) -> None:
        """Print a command and run it.

        Args:
            program: A key of `_MODULES`.
            *arguments: The command's.
            show: Whether its output is printed; otherwise only the last line, if it fails.
        """
        line = shlex.join([program, *arguments])
        self.console.print(f"\n$ {line}", style="bold", soft_wrap=True, highlight=False, markup=False)
        command = [sys.executable, "-m", _MODULES[program], *arguments]
        waiting = contextlib.nullcontext() if show else self.console.status("running ...")
        with waiting:
            done = subprocess.run(command, capture_output=not show, text=True, check=False)
        if done.returncode:
            last = (done.stderr or "").strip().splitlines()[-1:] or ["see above"]
            raise TruthGateError(f"the step `{line}` failed: {last[0]}")
