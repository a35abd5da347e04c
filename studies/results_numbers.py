"""The study's figures, read from what its steps wrote, as one dict: docs/results.json."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import results_evaluate
from make_controls import machine
from results_plan import FLOORS, GATES, PROBED, READINGS, SITES, Study, folder_of, random_runs, runs, stages
from results_run import StudyFolder

from truthgate_eval.analysis.heads.control_report import control_verdicts
from truthgate_eval.analysis.heads.correlation import Correlation, correlate
from truthgate_eval.data.store import read_rows
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.metrics.pope import SPLITS
from truthgate_eval.packaged.scenes import make_scene
from truthgate_eval.packaged.scenes_dataset import make_questions, scenes_file

# The halves a and b have disjoint documents, so the two artifacts of a pair share none.
PAIRS = {
    "base and child, same task": [
        ("base-halueval-a", "child-halueval-b"),
        ("base-scenes-text-a", "child-scenes-text-b"),
    ],
    "base's text and child's pictures": [
        ("base-halueval-a", "child-picture-b"),
        ("base-scenes-text-a", "child-picture-b"),
    ],
    "child, other data": [
        ("child-halueval-a", "child-picture-b"),
        ("child-scenes-text-a", "child-picture-b"),
        ("child-picture-a", "child-black-b"),
        ("child-picture-a", "child-none-b"),
    ],
    "floor: random weights": [
        ("base-halueval-b", "random-halueval-a"),
        ("base-scenes-text-b", "random-scenes-text-a"),
    ],
    "floor: heads permuted": [
        ("base-halueval-b", "permuted-halueval-a"),
        ("child-halueval-b", "permuted-halueval-a"),
        ("child-picture-b", "permuted-picture-a"),
    ],
}
CEILING, SHUFFLED = "ceiling: same model and task", "floor: shuffled labels"
_TRAINING_SCENES = 2000
Json = dict[str, Any]


def collect(study: Study, folder: StudyFolder) -> Json:
    """All figures of the page, JSON-serialisable."""
    first = TruthScores.load(folder.folder / "base-halueval-a-post.npz")
    permutation = json.loads((folder.folder / "material" / "permutation.json").read_bytes())
    records = {step.name: folder.record(step.name) for stage in stages(study) for step in stage}
    return {
        "machine": machine(),
        "versions": first.metadata["versions"],
        "sizes": study.sizes.as_dict(),
        "steps": [
            {"name": name, "command": _bare(record["command"], study), "seconds": record["seconds"]}
            for name, record in records.items()
        ],
        "permutation": {key: permutation[key] for key in ("logits_apart", "logits_size")},
        "probed": {name: summary(folder.folder, name) for name in (*PROBED, *FLOORS)},
        "inheritance": {site: inheritance(folder.folder, site) for site in SITES},
        "axis": {checkpoint: axis(folder.folder, checkpoint) for checkpoint in study.checkpoints},
        "random": random_gates(study, folder.folder),
        "gating": {checkpoint: gating(study, folder.folder, checkpoint) for checkpoint in study.checkpoints},
        "polls": {checkpoint: polls(study.num_test(checkpoint)) for checkpoint in study.checkpoints},
    }


def _bare(command: str, study: Study) -> str:
    """A command without the folders of one machine."""
    for name, model in study.checkpoints.items():
        if Path(model).is_absolute():
            command = command.replace(model, f"{name.upper()}_FOLDER")
    return command.replace(study.base, "BASE_FOLDER") if Path(study.base).is_absolute() else command


def summary(folder: Path, name: str) -> Json:
    """One artifact of each site: the level of its scores, and its controls."""
    found: Json = {}
    for site in SITES:
        scores = TruthScores.load(folder / f"{name}-a-{site}.npz")
        assert scores.auroc is not None and scores.stderr is not None
        centred = scores.scores - scores.scores.mean(axis=1, keepdims=True)
        found[site] = {
            "documents": scores.metadata["documents"],
            "sequences": scores.metadata["sequences"],
            "heads": scores.scores.size,
            "mean": float(scores.scores.mean()),
            "best": float(scores.scores.max()),
            "auroc": float(scores.auroc.mean()),
            "stderr": float(scores.stderr.mean()),
            "within_layers": float(centred.std()),
            "controls": {
                one.name: {
                    "mean": one.accuracy,
                    "above": one.above,
                    "r": _r(scores, one.name),
                }
                for one in control_verdicts(scores)
            },
        }
    return found


def _r(scores: TruthScores, control: str) -> float | None:
    """Pearson's r, within layers, of the scores with a control's; None where the control has one number."""
    if scores.controls[control].size == 1:
        return None
    pairs = correlate([scores.scores, scores.controls[control]], permutations=1)
    return next(one.r for one in pairs if (one.measure, one.scope) == ("pearson", "within layers"))


def inheritance(folder: Path, site: str) -> list[Json]:
    """Pearson's r of pairs of artifacts, in groups, over all heads and within layers, with the ceilings."""
    known = {
        (one["first"], one["second"], one["scope"]): one
        for one in json.loads((folder / f"matrix-{site}.json").read_bytes())["correlations"]
        if one["measure"] == "pearson"
    }

    def pair(first: str, second: str, scope: str) -> Json:
        one = known.get((first, second, scope)) or known[second, first, scope]
        return {key: one[key] for key in ("r", "low", "high", "p")}

    scopes = ("all heads", "within layers")
    ceilings = {name: {scope: pair(f"{name}-a", f"{name}-b", scope) for scope in scopes} for name in PROBED}
    rows = [
        {"group": CEILING, "first": f"{name}-a", "second": f"{name}-b", **found}
        for name, found in ceilings.items()
    ]
    for group, pairs in PAIRS.items():
        for first, second in pairs:
            row: Json = {"group": group, "first": first, "second": second}
            row |= {scope: pair(first, second, scope) for scope in scopes}
            both = [ceilings.get(name.rpartition("-")[0]) for name in (first, second)]
            if not group.startswith("floor") and all(both):
                row["ceiling"] = {
                    scope: _geometric(*(one[scope]["r"] for one in both if one)) for scope in scopes
                }
            rows.append(row)
    return rows + [_shuffled(folder, name, site) for name in ("base-halueval", "child-picture")]


def _geometric(first: float, second: float) -> float | None:
    """The largest r that two scores could have, given the noise of each; None if one of them is all noise."""
    return math.sqrt(first * second) if first > 0 and second > 0 else None


def _shuffled(folder: Path, name: str, site: str) -> Json:
    """The scores of half b against those of half a with shuffled labels."""
    true, shuffled = (TruthScores.load(folder / f"{name}-{half}-{site}.npz") for half in "ba")
    found: list[Correlation] = correlate([true.scores, shuffled.controls["shuffled-labels"]])
    row: Json = {"group": SHUFFLED, "first": f"{name}-b", "second": f"{name}-a, shuffled labels"}
    return row | {
        one.scope: {key: getattr(one, key) for key in ("r", "low", "high", "p")}
        for one in found
        if one.measure == "pearson"
    }


def axis(folder: Path, checkpoint: str) -> Json:
    """All candidates, by score set and reading; each has the vanilla model at lam = 0."""
    found: Json = {}
    for gate in GATES:
        for reading in READINGS:
            probed, gated = reading.split("-")
            tried = results_evaluate.candidates(checkpoint, gate, probed, folder)
            chosen = results_evaluate.choose(tried, gated)
            own = [point for point in tried if point.lam == 0 or point.site == gated]
            found[f"{gate}-{reading}"] = {
                "points": [dataclasses.asdict(point) for point in own],
                "chosen": {"lam": chosen.lam, "norm": chosen.norm, "value": chosen.value},
                "best_of_all": dataclasses.asdict(results_evaluate.best_candidate(own)),
            }
    return found


def random_gates(study: Study, folder: Path) -> Json:
    """Accuracy of the random gates on the selection split, by site."""
    found: Json = {site: [] for site in SITES}
    for name in random_runs(study, "child"):
        done = json.loads((folder / folder_of("child", name) / "done.json").read_bytes())
        found[name.rpartition("-")[2]].append(done["outcome"]["value"])
    return found


def gating(study: Study, folder: Path, checkpoint: str) -> Json:
    """The evaluated runs: metrics by split of POPE, and the comparison with vanilla."""
    compared = json.loads((folder / f"compare-{checkpoint}.json").read_bytes())
    board = next(board for board in compared["boards"] if board["name"] == "scenes")
    rows = {row["label"]: row for row in board["rows"]}
    found: Json = {}
    for name in runs(study, checkpoint):
        done = json.loads((folder / folder_of(checkpoint, name) / "done.json").read_bytes())
        cells = {
            split: {metric: cell["mean"] for metric, cell in cells.items()}
            for split, cells in rows[name]["cells"].items()
        }
        ratios, unparsed = _of_results(folder / folder_of(checkpoint, name))
        for split in SPLITS:
            cells[split] |= {"yes_ratio": ratios[split], "unparsed": unparsed[split]}
        gate = {key: done["gate"].get(key) for key in ("lam", "norm", "site")}
        against = {one["part"]: one for one in board["comparisons"] if one["name"] == name}
        found[name] = {"gate": gate, "cells": cells, "against_vanilla": against}
    return {"runs": found, "parts": board["parts"], "warnings": compared["warnings"]}


def _of_results(folder: Path) -> tuple[Json, Json]:
    """Yes ratio and share of unparsed answers by split, which `truthgate compare` does not have."""
    results = json.loads(next(folder.rglob("*_results.json")).read_bytes())["results"]

    def metric(name: str) -> Json:
        return {split: results[f"scenes_{split}"][f"{name},none"] for split in SPLITS}

    return metric("yes_ratio"), metric("unparsed")


def polls(num_test: int) -> Json:
    """The number of polls, and the accuracy of a guess without the image."""
    training = make_questions([make_scene("train", number) for number in range(_TRAINING_SCENES)])
    distinct, found = set(), {}
    for split in SPLITS:
        rows = [row for row in read_rows(scenes_file(split)) if row["subset"] == "evaluation"][:num_test]
        distinct |= {(row["image"], row["object"]) for row in rows}
        guessed = blind_guesses(training[split])
        right = sum(guessed.get(row["object"], "no") == row["answer"] for row in rows)
        found[split] = {"polls": len(rows), "blind": right / len(rows)}
    return {"splits": found, "distinct": len(distinct), "training_scenes": _TRAINING_SCENES}


def blind_guesses(training: list[Json]) -> dict[str, str]:
    """The more frequent answer to each object's question in training scenes; "no" for equal counts."""
    counts = Counter((row["object"], row["answer"]) for row in training)
    return {name: "yes" if counts[name, "yes"] > counts[name, "no"] else "no" for name, _ in counts}
