"""Make docs/which-heads.md's figures: run `truthgate study`, write the tables and the plots.

    python studies/make_study.py FOLDER [STUDY ...]

Whatever a study's folder holds already is not computed again. With names, the other studies stay as they are
in docs/study.json, where all numbers go. The page's tables stand between two comments, and are replaced.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from make_controls import machine

from truthgate_eval.attribution.study import row_name

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- studies/make_study.py writes from here -->\n", "<!-- to here -->\n"
PACKAGES = ("truthgate_eval", "torch", "transformers", "lm_eval", "lmms_eval")
# Artifacts that a study takes, made first.
SCORES = {
    "base-captions.npz": ["--tasks", "probe_scenes_text", "--limit", "300"],
    "base-halueval.npz": ["--tasks", "probe_halueval_qa", "--limit", "150"],
}
_CAPTIONS = ["--score", "base on captions=base-captions.npz"]
_HALUEVAL = ["--score", "base on HaluEval=base-halueval.npz"]
_CHILD = [
    "--model", "vlm", "--tasks", "scenes_random", "--apply_chat_template", "--limit", "300",
    "--score", "gradient", *_CAPTIONS, *_HALUEVAL, "--action", "soft", "--kl", "0.002,0.01",
    "--controls", "2",
]  # fmt: skip
_EASY = [
    "--model", "vlm", "--tasks", "easy_vqa", "--apply_chat_template", "--limit", "300",
    "--score", "accuracy", "--score", "gradient", *_CAPTIONS, *_HALUEVAL, "--action", "soft", "--kl", "0.002",
    "--controls", "2",
]  # fmt: skip


def _judging(model: str, **metadata: object) -> list[str]:
    """Gates on a text child, on documents that no score was made on."""
    return [
        "--model", "hf", "--tasks", "halueval_qa", "--limit", "150", "--score", "accuracy",
        "--score", "gradient", *_HALUEVAL, "--action", "soft", "--kl", "0.002", "--controls", "2",
        "--model_args", f"pretrained={model}",
        "--metadata", json.dumps({"exclude_rows_of": "base-halueval.npz", **metadata}),
    ]  # fmt: skip


STUDIES = {
    "scenes-early": [*_CHILD, "--score", "learned", "--model_args", "pretrained=smollm2-135m-scenes-early"],
    "scenes": [*_CHILD, "--score", "learned", "--model_args", "pretrained=smollm2-135m-scenes"],
    "easy-vqa-early": [*_EASY, "--model_args", "pretrained=smollm2-135m-easy-vqa-early"],
    "easy-vqa": [*_EASY, "--model_args", "pretrained=smollm2-135m-easy-vqa"],
    "halueval-early": _judging("smollm2-135m-halueval-early"),
    "halueval-early-matched": _judging("smollm2-135m-halueval-early", surface_matched=True),
    "halueval": _judging("smollm2-135m-halueval"),
    "halueval-matched": _judging("smollm2-135m-halueval", surface_matched=True),
    "kinds": [
        "--model", "hf", "--tasks", "probe_halueval_qa", "--limit", "80", "--score", "accuracy",
        "--score", "auroc", "--score", "context-gain", "--score", "gradient",
        "--score", "divergence", "--score", "direct-effect", "--score", "copy", "--action", "soft",
        "--kl", "0.01", "--controls", "0",
    ],
}  # fmt: skip


def main(folder: Path, *only: str) -> None:
    """Run the studies, or those of these names, then write everything."""
    ran_on = {"machine": machine(), "versions": {name: version(name) for name in PACKAGES}}
    results: dict[str, Any] = {**ran_on, "studies": {}}
    if unknown := set(only) - set(STUDIES):
        sys.exit(f"no study {', '.join(sorted(unknown))}: there are {', '.join(STUDIES)}")
    if only:
        kept = json.loads((DOCS / "study.json").read_text(encoding="utf-8"))
        if {name: kept[name] for name in ran_on} != ran_on:
            sys.exit("docs/study.json is of another machine or other versions: run all studies")
        results["studies"] = kept["studies"]
    made = {file: ["probe", "--score", "gradient", *own, "--output", file] for file, own in SCORES.items()}
    results["scores"] = [shlex.join(["truthgate", *command]) for command in made.values()]
    for file, command in made.items():
        if not (folder / file).is_file():
            truthgate(command, folder)
    for name, options in STUDIES.items():
        if only and name not in only:
            continue
        command = ["study", *options, "--output", name]
        truthgate(command, folder)
        found = json.loads((folder / name / "study.json").read_text(encoding="utf-8"))
        shown = shlex.join(["truthgate", *command])
        results["studies"][name] = {"command": shown, "models": found["models"]}
        shutil.copy(folder / name / "study.png", DOCS / "images" / f"study-{name}.png")
    (DOCS / "study.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page = DOCS / "which-heads.md"
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    page.write_text(before + BEGIN + tables(results) + END + rest.split(END)[1], encoding="utf-8")


def truthgate(command: list[str], folder: Path) -> None:
    """Run a command in the folder."""
    subprocess.run([sys.executable, "-m", "truthgate_eval", *command], cwd=folder, check=True)


def tables(results: Mapping[str, Any]) -> str:
    """All studies as Markdown."""
    parts = ["\n".join(f"    {command}" for command in results["scores"])]
    for name, study in results["studies"].items():
        parts += [f"### Study: {name}", f"    {study['command']}", f"![Log-losses](images/study-{name}.png)"]
        for model, found in study["models"].items():
            vanilla = found["vanilla"]
            auroc = "" if vanilla["auroc"] is None else f", AUROC {vanilla['auroc']:.4f}"
            parts += [
                f"**{model}**, {vanilla['documents']} test documents in {vanilla['clusters']} clusters: log-loss "
                f"{vanilla['log_loss']:.4f}, accuracy {vanilla['accuracy']:.3f}{auroc} without a gate.",
                gates(found["rows"]),
                "Reliability within layers: " + reliabilities(found["reliability"]) + ".",
                correlations(found["correlations"]),
            ]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    return "\n\n".join([*parts, f"{results['machine']}, {versions}."]) + "\n"


def gates(rows: list[dict[str, Any]]) -> str:
    """One line a gate."""
    lines = [
        "| gate | KL | log-odds, scoring | log-odds, test | log-loss | log-loss with offset | conclusion |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        offset = row["difference"].get("log_loss_offset")
        cells = (
            row_name(row),
            f"{row['divergence']:.2g}",
            interval(row["log_odds"]["scoring"], 3),
            interval(row["log_odds"]["test"], 3),
            interval(row["difference"]["log_loss"], 4),
            "" if offset is None else interval(offset, 4),
            row["conclusion"],
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(own: Mapping[str, float], digits: int) -> str:
    """A difference with its 95 % interval."""
    mean, low, high = (round(own[name], digits) + 0.0 for name in ("mean", "low", "high"))  # no -0.000
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def reliabilities(found: Mapping[str, Any]) -> str:
    """Each kind with its split-half reliability."""
    return ", ".join(
        f"{name} {own['within']:.2f}" if own and "within" in own else f"{name} unknown"
        for name, own in found.items()
    )


def correlations(found: Mapping[str, Mapping[str, float | None]]) -> str:
    """Pearson's r within layers between kinds; nothing where a learned gate never left 1."""
    lines = [f"| r within layers | {' | '.join(found)} |", f"| --- |{' --- |' * len(found)}"]
    lines += [
        f"| {name} | {' | '.join('' if r is None else f'{r:.2f}' for r in row.values())} |"
        for name, row in found.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
