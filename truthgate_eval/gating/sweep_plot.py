"""The picture of a sweep: the metric over lam, a line for each norm and site, the vanilla model across."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from truthgate_eval.files import write_whole
from truthgate_eval.gating.sweep import Candidate, best_candidate


def save_sweep_plot(points: Sequence[Candidate], metric: str, tasks: str, path: Path) -> None:
    """Draw the points; bars are one standard error where the host gives one.

    Args:
        points: Of one sweep.
        metric: The name of their value.
        tasks: What they were judged on, for the title.
        path: A `.png`; it appears whole.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    vanilla = [point for point in points if point.lam == 0]
    for point in vanilla:
        axes.axhline(point.value, color="0.45", linestyle="--", linewidth=1, label="vanilla")
        if point.stderr:
            low, high = point.value - point.stderr, point.value + point.stderr
            axes.axhspan(low, high, color="0.45", alpha=0.12, linewidth=0)
    for norm, site in dict.fromkeys((point.norm, point.site) for point in points if point.lam != 0):
        line = sorted(
            (point for point in points if (point.norm, point.site) == (norm, site) and point.lam != 0),
            key=lambda point: point.lam,
        )
        errors = [point.stderr or 0.0 for point in line]
        lam, value = [point.lam for point in line], [point.value for point in line]
        axes.errorbar(lam, value, yerr=errors, marker="o", markersize=4, capsize=2, label=f"{norm}, {site}")
    chosen = best_candidate(points)
    if chosen.lam != 0:
        axes.plot(
            chosen.lam, chosen.value, "o", markersize=12, fillstyle="none", color="black", label="chosen"
        )
    axes.set_xlabel("lam")
    axes.set_ylabel(metric)
    axes.set_title(f"{tasks}, held-out fifth, n = {points[0].documents}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="best")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    write_whole(path, content.getvalue())
