"""Which gate to recommend: a grid of settings, each judged on held-out data, and the choice."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from truthgate_eval.anatomy import check_site
from truthgate_eval.errors import GateError
from truthgate_eval.gate import NORMS
from truthgate_eval.scores import TruthScores


@dataclass(frozen=True)
class Point:
    """One setting and how it did; lam = 0 is the vanilla model, whatever norm and site say."""

    lam: float
    norm: str
    site: str
    value: float = float("nan")
    documents: int = 0


def make_grid(*, lam: str, norm: str, site: str) -> list[Point]:
    """The settings of comma-separated lists, with the vanilla model once in front.

    Raises:
        GateError: A value is not one that exists.
    """
    try:
        strengths = [float(value) for value in lam.split(",")]
    except ValueError:
        raise GateError(f"--lam {lam}: expected numbers, comma-separated") from None
    norms, sites = norm.split(","), site.split(",")
    for value in norms:
        if value not in NORMS:
            raise GateError(f"unknown norm {value!r}: expected one of {', '.join(NORMS)}")
    for value in sites:
        check_site(value)
    vanilla = Point(0.0, norms[0], sites[0])
    return [vanilla, *(Point(x, n, s) for s in sites for n in norms for x in strengths if x != 0)]


def best(points: Sequence[Point]) -> Point:
    """The highest value; of equals, the gentlest gate: the smallest |lam|, then the first given."""
    return max(points, key=lambda point: (point.value, -abs(point.lam)))


def recommend(
    artifact: TruthScores, chosen: Point, points: Sequence[Point], *, task: str, metric: str
) -> TruthScores:
    """The artifact with the choice, and every point that led to it, in its metadata."""
    recommended: dict[str, Any] = {
        "lam": chosen.lam,
        "norm": chosen.norm,
        "site": chosen.site,
        "modality": "text",
        "task": task,
        "metric": metric,
        "subset": "selection",
        "points": [dataclasses.asdict(point) for point in points],
    }
    return dataclasses.replace(artifact, metadata={**artifact.metadata, "recommended": recommended})


def table(points: Sequence[Point], metric: str) -> Table:
    """All points, the chosen one marked."""
    chosen = best(points)
    result = Table(title=f"{metric} on the held-out 20 %, n = {points[0].documents}", title_justify="left")
    for column in ("lam", "norm", "site", metric, ""):
        result.add_column(column, justify="right" if column in ("lam", metric) else "left")
    for point in points:
        names = ("-", "-") if point.lam == 0 else (point.norm, point.site)
        mark = "chosen" if point is chosen else ""
        result.add_row(f"{point.lam:g}", *names, f"{point.value:.4f}", mark)
    return result
