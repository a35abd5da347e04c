"""Make docs/sites.md's tables: probe site x gate site on the packaged model and HaluEval.

    python studies/make_sites.py FOLDER

runs ordinary commands in FOLDER, about half an hour on two cores, and continues after an interruption.
The page's tables stand between two comments, and are replaced.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from truthgate_eval.gating.scores import TruthScores

PROBED, SELECTION, EVALUATION, LAM = 292, 150, 400, 4.5
READINGS = {
    "post-post": "the paper's text",
    "pre-post": "the released code",
    "pre-pre": "a head's own output",
}
PAGE = Path(__file__).resolve().parent.parent / "docs" / "sites.md"
BEGIN, END = "<!-- studies/make_sites.py writes from here -->\n", "<!-- to here -->\n"


def main(work: Path) -> None:
    """Probe and evaluate what is missing, then write the tables."""
    work.mkdir(parents=True, exist_ok=True)
    for site in ("post", "pre"):
        if not (work / f"{site}.npz").is_file():
            probe = f"probe --tasks probe_halueval_qa --limit {PROBED} --site {site} --output {site}.npz"
            run(work, "truthgate_eval", *probe.split())
    for reading in READINGS:
        probed, gated = reading.split("-")
        if not (work / f"{reading}.npz").is_file():
            shutil.copyfile(work / f"{probed}.npz", work / f"{reading}.npz")
        sweep = (
            f"sweep {reading}.npz --site {gated} --lam {-LAM},1,{LAM},10 --norm centered --limit {SELECTION}"
        )
        run(work, "truthgate_eval", *sweep.split(), "--rest_limit", "0")
    evaluate(work)
    run(work, "truthgate_eval", "correlate", "post.npz", "pre.npz", "--json", "correlation.json")
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(before + BEGIN + tables(work) + END + rest.split(END)[1], encoding="utf-8")


def evaluate(work: Path) -> None:
    """Run vanilla, two random gates and the three readings on documents that were not probed or chosen on."""
    gates = {"vanilla": "scores=none", "random-1": "scores=random:1", "random-2": "scores=random:2"}
    for reading in READINGS:
        probed, gated = reading.split("-")
        gates[reading] = f"scores={probed}.npz,lam={LAM},norm=centered,site={gated}"
    metadata = json.dumps({"subset": "evaluation", "exclude_rows_of": "post.npz"})
    for name, gate in gates.items():
        if not list((work / "runs" / name).rglob("results_*.json")):
            command = (
                f"--model gated_hf --tasks halueval_qa --limit {EVALUATION} --batch_size 8 --log_samples"
            )
            where = ("--model_args", gate, "--metadata", metadata, "--output_path", f"runs/{name}")
            run(work, "lm_eval", *command.split(), *where)
    runs = [f"{name}=runs/{name}" if name in READINGS else f"runs/{name}" for name in gates]
    run(work, "truthgate_eval", "compare", *runs, "--published", "none", "--markdown", "compare.md")


def run(work: Path, module: str, *arguments: str) -> None:
    """Run `python -m MODULE ARGUMENTS` in the folder."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-m", module, *arguments], cwd=work, env=environment, check=True)


def tables(work: Path) -> str:
    """The page's block, with every figure read from what the commands wrote."""
    artifacts = {site: TruthScores.load(work / f"{site}.npz") for site in ("post", "pre")}
    versions = artifacts["post"].metadata["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "lm_eval"))
    means = ", ".join(f"{artifact.scores.mean():.3f} ({site})" for site, artifact in artifacts.items())
    spreads = ", ".join(f"{mean_distance(artifact):.3f} ({site})" for site, artifact in artifacts.items())
    pairs = json.loads((work / "correlation.json").read_text())["correlations"]
    agree = ", ".join(
        f"r = {pair['r']:.2f} {pair['scope']}" for pair in pairs if pair["measure"] == "pearson"
    )
    compared = (work / "compare.md").read_text().strip()
    compared = compared.replace("# Leaderboard\n\n## ", "")
    return (
        f"\nSmolLM2-135M-Instruct, {PROBED} HaluEval-QA questions probed; {platform.machine()} CPU, {packages}.\n"
        f"\nMean score: {means}; mean distance from a layer's mean: {spreads}. The two maps agree to {agree}.\n"
        f"\n### Over the lam axis\n\nAccuracy in percent ± one standard error on {SELECTION} questions of "
        f"`halueval_qa`'s held-out fifth, norm centered.\n\n{axis_table(work)}\n"
        f"\n### On the evaluation split\n\nlam = {LAM}, centered, {EVALUATION} questions that were neither probed nor used for the "
        f"choice.\n\n{compared}\n\n"
    )


def mean_distance(artifact: TruthScores) -> float:
    """The mean distance of a score from its layer's mean, which is what norm=centered leaves."""
    centered = artifact.scores - artifact.scores.mean(axis=1, keepdims=True)
    return float(abs(centered).mean())


def axis_table(work: Path) -> str:
    """A row for each reading, with vanilla at lam = 0."""
    points = {}
    for reading in READINGS:
        recommended = TruthScores.load(work / f"{reading}.npz").metadata["recommended"]
        points[reading] = {point["lam"]: point for point in recommended["points"]}
    axis = sorted(points["post-post"])
    head = " | ".join(f"lam = {lam:g}" for lam in axis)
    lines = [f"| probe, gate | {head} |", "| --- |" + " ---: |" * len(axis)]
    for reading, found in points.items():
        cells = (f"{100 * found[lam]['value']:.1f} ± {100 * found[lam]['stderr']:.1f}" for lam in axis)
        lines.append(f"| {reading.replace('-', ', ')}: {READINGS[reading]} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
