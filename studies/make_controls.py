"""Make docs/controls.md's figures: probe, read the artifacts, write the table and the plot.

    python studies/make_controls.py FOLDER

Artifacts that are in FOLDER already are not probed again. The page's table stands between two
comments, and is replaced; the numbers behind it go into docs/controls.json.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from truthgate_eval.analysis.heads.control_report import control_verdicts
from truthgate_eval.analysis.heads.correlation import correlate
from truthgate_eval.data import halueval
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.probing.controls import CONTROLS
from truthgate_eval.probing.surface import without_final_punctuation

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- studies/make_controls.py writes from here -->\n", "<!-- to here -->\n"
COMMAND = [
    "probe", "--model", "hf", "--tasks", "probe_halueval_qa", "--limit", "292", "--seeds", "5",
    "--device", "cpu",
    *(word for name in CONTROLS for word in ("--control", name)),
]  # fmt: skip
RUNS = {"as they are": ("plain.npz", []), "surface-matched": ("matched.npz", ["--surface-matched"])}


def main(folder: Path) -> None:
    """Probe what is missing, then write everything."""
    results: dict[str, Any] = {"machine": machine(), "answers": {}}
    artifacts = {}
    for name, (file, more) in RUNS.items():
        command = [*COMMAND, *more, "--output", str(folder / file)]
        if not (folder / file).is_file():
            subprocess.run([sys.executable, "-m", "truthgate_eval", *command], check=True)
        artifacts[name] = TruthScores.load(folder / file)
        shown = shlex.join(["truthgate", *command[:-1], file])
        results["answers"][name] = {"command": shown, **summary(artifacts[name])}
    results["between_both"] = [
        {"heads": pair.scope, "r": pair.r, "low": pair.low, "high": pair.high, "p": pair.p}
        for pair in correlate([scores.scores for scores in artifacts.values()])
        if pair.measure == "pearson"
    ]
    results["versions"] = artifacts["as they are"].metadata["versions"]
    (DOCS / "controls.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw(artifacts, DOCS / "images" / "controls.png")
    page = DOCS / "controls.md"
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    page.write_text(before + BEGIN + table(results) + END + rest.split(END)[1], encoding="utf-8")


def machine() -> str:
    """The processor and the number of its cores that this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} core{'' if cores == 1 else 's'} of {names[0] if names else platform.machine()}"


def summary(scores: TruthScores) -> dict[str, Any]:
    """The page's figures for one artifact; accuracies are means over heads unless named best."""
    assert scores.stderr is not None and scores.seed_scores is not None and scores.auroc is not None
    best = np.unravel_index(scores.scores.argmax(), scores.shape)
    gain = scores.scores - scores.controls["no-context"]
    return {
        "in_the_knowledge": in_the_knowledge(scores.metadata["rows"]["halueval/qa"]),
        "gain": float(gain.mean()),
        "gain_by_layer": [round(float(value), 4) for value in gain.mean(axis=1)],
        "documents": scores.metadata["documents"],
        "accuracy": float(scores.scores.mean()),
        "best": float(scores.scores.max()),
        "best_stderr": float(scores.stderr[best]),
        "auroc": float(scores.auroc.mean()),
        "seed_spread": float(scores.seed_scores.std(axis=0, ddof=1).mean()),
        "mean_stderr": float(scores.stderr.mean()),
        "heads": scores.scores.size,
        "controls": {
            verdict.name: {
                "accuracy": verdict.accuracy,
                "best": verdict.best,
                "above": verdict.above,
                "auroc": scores.metadata["controls"][verdict.name]["auroc"],
                "stderr": scores.metadata["controls"][verdict.name]["stderr"],
                "correlation": correlation(scores, verdict.name),
            }
            for verdict in control_verdicts(scores)
        },
    }


def in_the_knowledge(rows: list[int]) -> dict[str, float]:
    """Share of the right and of the hallucinated answers that occur in their knowledge, ignoring letter case."""
    wanted = set(rows)
    records = [record for row, record in enumerate(halueval.read_records("qa")) if row in wanted]
    return {
        column: sum(
            without_final_punctuation(record[column]).strip().casefold() in record["knowledge"].casefold()
            for record in records
        )
        / len(records)
        for column in halueval.ANSWER_COLUMNS["qa"]
    }


def correlation(scores: TruthScores, name: str) -> float | None:
    """Pearson's r over heads of the scores with a control's; None where the control has one number."""
    control = scores.controls[name]
    if control.size == 1:
        return None
    return float(np.corrcoef(scores.scores.ravel(), control.ravel())[0, 1])


def table(results: dict[str, Any]) -> str:
    """The page's table, Markdown."""
    lines = [
        "| answers | probed | mean accuracy | best head | mean AUROC | heads above it | r with the scores |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, run in results["answers"].items():
        own = f"{run['accuracy']:.3f} | {run['best']:.3f} | {run['auroc']:.3f} | | |"
        lines.append(f"| {name} | the scores | {own}")
        for control, found in run["controls"].items():
            best = "" if found["correlation"] is None else f"{found['best']:.3f}"
            mean = f"{found['accuracy']:.3f}" + (f" ± {found['stderr']:.3f}" if not best else "")
            r = "" if found["correlation"] is None else f"{found['correlation']:.2f}"
            above = f"{found['above']} of {run['heads']}"
            lines.append(f"| | {control} | {mean} | {best} | {found['auroc']:.3f} | {above} | {r} |")
    lines += ["", "| answers | right ones in the knowledge | hallucinated ones | mean gain over no context |"]
    lines.append("| --- | --- | --- | --- |")
    for name, run in results["answers"].items():
        shares = " | ".join(f"{share:.1%}" for share in run["in_the_knowledge"].values())
        lines.append(f"| {name} | {shares} | {run['gain']:+.3f} |")
    lines += ["", "| scores of both, head by head | r | 95 % interval | p |", "| --- | --- | --- | --- |"]
    for pair in results["between_both"]:
        interval = f"{pair['low']:.2f} to {pair['high']:.2f}"
        lines.append(f"| {pair['heads']} | {pair['r']:.2f} | {interval} | {pair['p']:.4f} |")
    versions = results["versions"]
    packages = ("truthgate_eval", "torch", "transformers", "lm_eval", "python")
    n = {str(run["documents"]) for run in results["answers"].values()}
    lines += [
        "",
        f"SmolLM2-135M-Instruct, {' and '.join(n)} documents with two answers each, {results['machine']}, "
        + ", ".join(f"{package} {versions[package]}" for package in packages)
        + ".",
    ]
    return "\n".join(lines) + "\n"


def draw(artifacts: dict[str, TruthScores], path: Path) -> None:
    """Each head's accuracy against its accuracy without context, the surface's as a line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.4), layout="constrained")
    panels = figure.subplots(1, len(artifacts), squeeze=False)[0]
    for axes, (name, scores) in zip(panels, artifacts.items(), strict=True):
        values = [scores.scores, *(scores.controls[control] for control in ("no-context", "shuffled-labels"))]
        low, high = min(v.min() for v in values) - 0.01, max(v.max() for v in values) + 0.02
        axes.plot([low, high], [low, high], color="0.6", linewidth=1)
        for control, colour in (("no-context", "C0"), ("swapped-context", "C1"), ("shuffled-labels", "0.5")):
            axes.scatter(scores.controls[control], scores.scores, s=9, alpha=0.6, color=colour, label=control)
        surface = float(scores.controls["surface"][0, 0])
        axes.axhline(surface, color="C3", linewidth=1, linestyle="--", label=f"surface, {surface:.3f}")
        axes.set(xlabel="head's accuracy under the control", ylabel="head's score", title=f"answers {name}")
        axes.legend(loc="lower right", fontsize=8)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
