"""The plot of docs/results.md that no command makes: accuracy over the strength of the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from results_plan import GATES, READINGS


def save_axis(results: dict[str, Any], path: Path) -> None:
    """A row for each model, a panel for each reading, a line for each score set and norm; vanilla is dashed."""
    from matplotlib.figure import Figure

    checkpoints = results["axis"]
    figure = Figure(figsize=(10, 3.2 * len(checkpoints)), layout="constrained")
    rows = figure.subplots(len(checkpoints), len(READINGS), squeeze=False, sharey="row")
    for row, (checkpoint, found) in zip(rows, checkpoints.items(), strict=True):
        for axes, (reading, words) in zip(row, READINGS.items(), strict=True):
            for number, gate in enumerate(GATES):
                _lines(axes, found[f"{gate}-{reading}"]["points"], gate, f"C{number}")
            axes.set(title=f"{reading.replace('-', ', ')}: {words}", xlabel="lam")
            axes.set_xscale("symlog", linthresh=0.3)
            lams = sorted({point["lam"] for point in found[f"{next(iter(GATES))}-{reading}"]["points"]})
            axes.set_xticks(lams, [f"{lam:g}" for lam in lams], minor=False)
            axes.set_xticks([], minor=True)
        row[0].set_ylabel(f"accuracy, {checkpoint}")
        row[-1].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version that drew it, so that two runs give the same bytes.
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _lines(axes: Any, points: list[dict[str, Any]], gate: str, colour: str) -> None:
    vanilla = next(point for point in points if point["lam"] == 0)
    axes.axhline(vanilla["value"], color="0.6", linewidth=1, linestyle="--")
    for norm, style in (("minmax", "-"), ("centered", ":")):
        own = sorted((p["lam"], p["value"]) for p in [*points, vanilla] if p["norm"] == norm or p["lam"] == 0)
        own = list(dict(own).items())
        if len(own) == 1:  # vanilla alone: this norm was not tried
            continue
        axes.plot(*zip(*own, strict=True), style, marker=".", color=colour, label=f"{gate}, {norm}")
