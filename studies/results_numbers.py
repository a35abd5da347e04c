"""The study's figures, read from what its steps wrote, as one dict: docs/results.json."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from make_controls import machine
from results_plan import FLOORS, PROBED, SITES, Sizes, stages
from results_run import StudyFolder

from truthgate_eval.analysis.heads.control_report import control_verdicts
from truthgate_eval.analysis.heads.correlation import Correlation, correlate
from truthgate_eval.gating.scores import TruthScores

# The halves a and b have disjoint documents, so the two artifacts of a pair share none.
PAIRS = {
    "base and child, same task": [
        ("base-halueval-a", "child-halueval-b"),
        ("base-halueval-a", "easy-halueval-b"),
        ("base-halueval-a", "text-halueval-b"),
        ("base-scenes-text-a", "child-scenes-text-b"),
    ],
    "base's text and a child's images": [
        ("base-halueval-a", "child-scenes-b"),
        ("base-halueval-a", "easy-easy-vqa-b"),
        ("base-scenes-text-a", "child-scenes-b"),
        ("base-scenes-text-a", "easy-easy-vqa-b"),
    ],
    "two children, each with its own images": [("child-scenes-a", "easy-easy-vqa-b")],
    "a child and its earlier state": [
        ("child-scenes-a", "early-scenes-b"),
        ("easy-easy-vqa-a", "easy-early-easy-vqa-b"),
    ],
    "a child, other data": [
        ("child-halueval-a", "child-scenes-b"),
        ("child-scenes-text-a", "child-scenes-b"),
        ("child-scenes-a", "child-black-b"),
        ("easy-easy-vqa-a", "easy-black-b"),
    ],
    "floor: random weights": [
        ("base-halueval-b", "random-halueval-a"),
        ("base-scenes-text-b", "random-scenes-text-a"),
    ],
    "floor: heads permuted": [
        ("base-halueval-b", "permuted-halueval-a"),
        ("child-halueval-b", "permuted-halueval-a"),
        ("child-scenes-b", "permuted-scenes-a"),
        ("base-scenes-text-b", "permuted-scenes-a"),
    ],
}
CEILING, SHUFFLED = "ceiling: same model and task", "floor: shuffled labels"
Json = dict[str, Any]


def collect(sizes: Sizes, folder: StudyFolder) -> Json:
    """All figures of the page, JSON-serialisable."""
    first = TruthScores.load(folder.folder / "base-halueval-a-post.npz")
    permutation = json.loads((folder.folder / "material" / "permutation.json").read_bytes())
    records = {step.name: folder.record(step.name) for stage in stages(sizes) for step in stage}
    return {
        "machine": machine(),
        "versions": first.metadata["versions"],
        "sizes": dataclasses.asdict(sizes),
        "steps": [
            {"name": name, "command": record["command"], "seconds": record["seconds"]}
            for name, record in records.items()
        ],
        "permutation": {key: permutation[key] for key in ("logits_apart", "logits_size")},
        "probed": {name: summary(folder.folder, name) for name in (*PROBED, *FLOORS)},
        "inheritance": {site: inheritance(folder.folder, site) for site in SITES},
    }


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
            "own_accuracy": scores.metadata["own_answers"].get("accuracy"),
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
    return rows + [
        _shuffled(folder, name, site) for name in ("base-halueval", "child-scenes", "easy-easy-vqa")
    ]


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
