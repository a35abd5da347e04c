"""Make the tables of docs/tasks.md#chair-on-the-packaged-models: captions of drawn scenes, vanilla and gated.

    python studies/make_chair.py FOLDER [IMAGES]

FOLDER is that of `make_study.py`, whose gates these are: their scores are there, and their strengths in
docs/study.json. Captions go into FOLDER/chair; those that are there already are not generated again. The page's
tables stand between two comments, and are replaced; the numbers behind them go into docs/chair.json.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import runpy
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from make_controls import machine

from truthgate_eval.analysis.leaderboard.cells import METRIC_TITLES, difference_cell, format_figure
from truthgate_eval.analysis.leaderboard.comparison import Difference

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- studies/make_chair.py writes from here -->\n", "<!-- to here -->\n"
PACKAGES = ("truthgate_eval", "torch", "transformers", "lmms_eval")
IMAGES = 250  # the first of the task; all are of subset `selection`
VANILLA = "vanilla"
# The studies of docs/study.json, and which of their gates: where their scores are. Both are gradients, whose zero
# means something, so that norm is none.
STUDIES = ("scenes-early", "scenes")
GATES = {"gradient": "{study}/*/scores-gradient.npz", "base on HaluEval": "base-halueval.npz"}
RANDOM, KL = "random 0", 0.01
# There are many short commands: the process that they are forked from imports what most of them need.
_IMPORTED = ("lmms_eval.evaluator", "truthgate_eval.harness.lmms_eval.model")
COLUMNS = ("chair_i", "chair_s", "recall", "length")


def main(folder: Path, images: int = IMAGES) -> None:
    """Run what is missing, then write everything."""
    studies = json.loads((DOCS / "study.json").read_text(encoding="utf-8"))["studies"]
    results: dict[str, Any] = {
        "machine": machine(), "versions": {name: version(name) for name in PACKAGES},
        "images": images, "commands": [], "models": {},
    }  # fmt: skip
    for name in STUDIES:
        [(model, found)] = studies[name]["models"].items()
        lams = strengths(found["rows"])
        gates = {gate: model_arguments(folder, name, gate, lam) for gate, lam in lams.items()}
        board = caption(folder, model, {VANILLA: "scores=none", **gates}, images, results["commands"])
        results["models"][model] = {"strengths": lams, "gates": rows(board)}
    (DOCS / "chair.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page = DOCS / "tasks.md"
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    page.write_text(before + BEGIN + tables(results) + END + rest.split(END)[1], encoding="utf-8")


def strengths(found: list[dict[str, Any]]) -> dict[str, float]:
    """The strength of each gate at a divergence of `KL`, which grows with its square: that is not measured again."""
    rows_of = {source: [row for row in found if row["source"] == source] for source in (*GATES, RANDOM)}
    nearest = {gate: min(own, key=lambda row: abs(row["target"] - KL)) for gate, own in rows_of.items()}
    return {gate: row["strength"] * math.sqrt(KL / row["target"]) for gate, row in nearest.items()}


def model_arguments(folder: Path, study: str, gate: str, lam: float) -> str:
    """A gate as model arguments; its scores are below the folder."""
    if gate == RANDOM:
        return f"scores=random:0,lam={lam:.6g}"
    pattern = GATES[gate].format(study=study)
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        sys.exit(f"{folder} has {len(found)} files {pattern}: run make_study.py there first")
    return f"scores={found[0].relative_to(folder)},norm=none,lam={lam:.6g}"


def caption(
    folder: Path, model: str, gates: Mapping[str, str], images: int, commands: list[str]
) -> dict[str, Any]:
    """Have the images captioned under every gate; what `truthgate compare` says of it."""
    runs = {}
    for gate, arguments in gates.items():
        where = f"chair/{images}/{model}/{gate.replace(' ', '-')}"
        runs[gate] = harness(folder, model, where, arguments, images, commands)
    compared = f"chair/{images}/{model}.json"
    named = [f"{name}={where}" for name, where in runs.items()]
    run(
        folder,
        "truthgate_eval",
        ["compare", *named, "--baseline", VANILLA, "--json", compared],
        compared,
        commands,
    )
    [board] = json.loads((folder / compared).read_text(encoding="utf-8"))["boards"]
    return dict(board)


def harness(folder: Path, model: str, where: str, arguments: str, images: int, commands: list[str]) -> str:
    """Run lmms-eval on `scenes_captions`, unless its results are there already; returns `where` they are."""
    command = ["--model", "gated_llava", "--model_args", f"pretrained={model},{arguments}"]
    command += ["--tasks", "scenes_captions", "--limit", str(images), "--batch_size", "16", "--log_samples"]
    run(folder, "lmms_eval", [*command, "--output_path", where], f"{where}/**/*_results.json", commands)
    return where


def run(folder: Path, module: str, arguments: list[str], makes: str, commands: list[str]) -> None:
    """Run `python -m MODULE ARGUMENTS` in the folder, unless it has been; its command is kept for the page."""
    commands.append(shlex.join(["truthgate" if module == "truthgate_eval" else module, *arguments]))
    if not list(folder.glob(makes)):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(_IMPORTED))
        process = context.Process(target=_work, args=(folder, module, arguments))
        process.start()
        process.join()
    if not list(folder.glob(makes)):  # lmms-eval ends without an error where a run fails
        sys.exit(f"{commands[-1]} has not made {makes}")


def _work(folder: Path, module: str, arguments: list[str]) -> None:
    os.chdir(folder)
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def rows(board: Mapping[str, Any]) -> dict[str, Any]:
    """By gate: the metrics, their intervals, and the differences from the vanilla model; of `compare --json`."""
    [part] = board["parts"]
    values = {row["label"]: row["cells"][part["name"]] for row in board["rows"]}
    by_gate = {one["name"]: one for one in board["captions"]}
    first = next(iter(by_gate.values()))
    found = {VANILLA: {"intervals": {name: first["intervals"][name][1] for name in COLUMNS}}}
    for gate, one in by_gate.items():
        found[gate] = {
            "intervals": {name: one["intervals"][name][0] for name in COLUMNS},
            "differences": {name: test["difference"] for name, test in one["tests"].items()}
            | {"length": one["length"]},
            "p_corrected": {name: test["p_corrected"] for name, test in one["tests"].items()},
            "verdicts": {name: test["verdict"] for name, test in one["tests"].items()},
        }
    for gate, own in found.items():
        own["values"] = {name: values[gate][name]["mean"] for name in COLUMNS}
    return found


def tables(results: Mapping[str, Any]) -> str:
    """The page's block, Markdown: one table a model."""
    titles = [METRIC_TITLES[name] for name in COLUMNS]
    parts = []
    for model, found in results["models"].items():
        lines = [
            f"| gate | lam | {' | '.join(titles)} | {' | '.join(f'{title} difference' for title in titles)} | verdict |",
            f"| --- | ---: |{' --- |' * (2 * len(titles) + 1)}",
        ]
        for gate, own in found["gates"].items():
            lam = f"{found['strengths'][gate]:.3g}" if gate in found["strengths"] else ""
            lines.append(f"| {gate} | {lam} | {' | '.join(cells(own))} |")
        parts += [f"**{model}**", "\n".join(lines)]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    parts.append(
        f"{results['images']} images, each with one caption; shares in percent, differences in percentage points, words of a "
        f"caption; 95 % intervals of a bootstrap that draws images, p of a verdict corrected over the gates of a model. "
        f"{results['machine']}, {versions}."
    )
    return "\n\n".join(parts) + "\n"


def cells(own: Mapping[str, Any]) -> list[str]:
    """A gate's figures, its differences and its verdict."""
    values = []
    for name in COLUMNS:
        low, high = (format_figure(name, bound) for bound in own["intervals"][name])
        values.append(f"{format_figure(name, own['values'][name])} [{low}, {high}]")
    if "differences" not in own:
        return [*values, *[""] * (len(COLUMNS) + 1)]
    differences = [difference_cell(Difference(**own["differences"][name]), name) for name in COLUMNS]
    verdicts = [
        f"{METRIC_TITLES[name]} {text}" for name, text in own["verdicts"].items() if text != "no difference"
    ]
    return [*values, *differences, ", ".join(verdicts) or "no difference"]


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
