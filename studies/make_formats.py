"""Make the table of docs/results.md#two-formats: the child probed in its own words and in the authors' format.

    python studies/make_formats.py FOLDER

Artifacts that are in FOLDER already are not probed again. The page's table stands between two comments, and
is replaced; the numbers behind it go into docs/formats.json.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from make_controls import machine

from truthgate_eval.analysis.heads.correlation import correlate
from truthgate_eval.analysis.heads.reliability import reliability_from_errors
from truthgate_eval.gating.scores import TruthScores

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- studies/make_formats.py writes from here -->\n", "<!-- to here -->\n"
POLLS, SITES, FORMATS = 1000, ("pre", "post"), ("task", "authors")
CAPTIONS = ["--model", "hf", "--tasks", "probe_scenes_text"]
IMAGES = ["--model", "vlm", "--tasks", "probe_scenes"]


def main(folder: Path) -> None:
    """Probe what is missing, then write everything."""
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"machine": machine(), "commands": [], "rows": []}
    for site in SITES:
        captions = probe(folder, results, f"captions-{site}.npz", [*CAPTIONS, "--site", site])
        for name in FORMATS:
            images = [*IMAGES, "--site", site, "--format", name]
            scores = probe(folder, results, f"pictures-{site}-{name}.npz", images)
            results["rows"].append({"site": site, "format": name, **summary(scores, captions)})
            results["versions"] = scores.metadata["versions"]
    (DOCS / "formats.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page = DOCS / "results.md"
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    page.write_text(before + BEGIN + table(results) + END + rest.split(END, 1)[1], encoding="utf-8")


def probe(folder: Path, results: dict[str, Any], file: str, options: list[str]) -> TruthScores:
    """The artifact, probed unless it is there; its command is kept for the page."""
    command = ["probe", *options, "--limit", str(POLLS), "--output", file]
    results["commands"].append(shlex.join(["truthgate", *command]))
    if not (folder / file).is_file():
        subprocess.run([sys.executable, "-m", "truthgate_eval", *command], cwd=folder, check=True)
    return TruthScores.load(folder / file)


def summary(scores: TruthScores, captions: TruthScores) -> dict[str, Any]:
    """One row's figures. An accuracy comes with half its 95 % interval.

    That of the mean over heads is the mean of the heads' own: an upper bound, reached if all heads were right and
    wrong on the same polls.
    """
    assert scores.stderr is not None
    best = np.unravel_index(scores.scores.argmax(), scores.shape)
    pairs = [pair for pair in correlate([scores.scores, captions.scores]) if pair.measure == "pearson"]
    return {
        "documents": scores.metadata["documents"],
        "mean": [float(scores.scores.mean()), 1.96 * float(scores.stderr.mean())],
        "best": [float(scores.scores[best]), 1.96 * float(scores.stderr[best])],
        "reliability": reliability_from_errors(scores)["within"],
        "own_accuracy": scores.metadata["own_answers"]["accuracy"],
        "captions": {pair.scope: [pair.r, pair.low, pair.high] for pair in pairs},
    }


def table(results: dict[str, Any]) -> str:
    """The page's block, Markdown."""
    lines = [
        "| site | format | mean over heads | best head | reliability within layers, at least | the child is right | r with "
        "the base on captions, all heads | within layers |",
        "| --- | --- | --- | --- | ---: | ---: | --- | --- |",
    ]
    for row in results["rows"]:
        accuracies = " | ".join(f"{value:.3f} ± {half:.3f}" for value, half in (row["mean"], row["best"]))
        r = " | ".join("{:.2f} ({:.2f} to {:.2f})".format(*found) for found in row["captions"].values())
        name = {"task": "its own", "authors": "the authors'"}[row["format"]]
        lines.append(
            f"| {row['site']} | {name} | {accuracies} | {row['reliability']:.2f} | {row['own_accuracy']:.1%} | {r} |"
        )
    versions = results["versions"]
    packages = ", ".join(
        f"{name} {versions[name]}" for name in ("truthgate_eval", "torch", "transformers", "lmms_eval")
    )
    commands = "\n".join(f"    {command}" for command in results["commands"])
    documents = " and ".join(sorted({str(row["documents"]) for row in results["rows"]}))
    return (
        "\n".join(lines)
        + f"\n\n{documents} polls with two answers each; accuracies with 95 % intervals, that of a mean as wide as "
        f"one head's; {results['machine']}, {packages}.\n\n{commands}\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
