"""The chart of a sweep: the metric over lam, a line for each norm and site, and the vanilla model."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from truthgate_eval.escaping import plot_text
from truthgate_eval.files import write_atomic
from truthgate_eval.gating.sweep import Candidate


@dataclass(frozen=True)
class SweepChart:
    """What the chart of a sweep shows, as an image and in the HTML report.

    Attributes:
        vanilla: The vanilla model, at lam = 0; it belongs to no line.
        lines: By norm and site, the gated candidates in the order of lam.
        chosen: The candidate to mark, which can be the vanilla one; None marks none.
    """

    vanilla: list[Candidate]
    lines: dict[str, list[Candidate]]
    chosen: Candidate | None


def make_sweep_chart(candidates: Sequence[Candidate], chosen: Candidate | None) -> SweepChart:
    """Arrange the candidates of a sweep in lines.

    Example:
        >>> tried = [Candidate(lam, "minmax", "post") for lam in (0.0, 2.0, 1.0)]
        >>> chart = make_sweep_chart(tried, tried[2])
        >>> {name: [candidate.lam for candidate in line] for name, line in chart.lines.items()}
        {'minmax, post': [1.0, 2.0]}
    """
    lines: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        if candidate.lam != 0:
            lines.setdefault(f"{candidate.norm}, {candidate.site}", []).append(candidate)
    lines = {name: sorted(line, key=lambda candidate: candidate.lam) for name, line in lines.items()}
    return SweepChart([candidate for candidate in candidates if candidate.lam == 0], lines, chosen)


def save_sweep_plot(
    candidates: Sequence[Candidate], chosen: Candidate, metric: str, tasks: str, path: Path
) -> None:
    """Plot the candidates of a sweep; error bars are one standard error.

    Args:
        candidates: The candidates, with their metrics.
        chosen: One of them.
        metric: The metric's name.
        tasks: The tasks that they were evaluated on, for the title.
        path: A `.png`, which is written atomically.
    """
    from matplotlib.figure import Figure

    chart = make_sweep_chart(candidates, chosen)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for vanilla in chart.vanilla:
        axes.axhline(vanilla.value, color="0.45", linestyle="--", linewidth=1, label="vanilla")
        if vanilla.stderr:
            low, high = vanilla.value - vanilla.stderr, vanilla.value + vanilla.stderr
            axes.axhspan(low, high, color="0.45", alpha=0.12, linewidth=0)
    for name, line in chart.lines.items():
        errors = [candidate.stderr or 0.0 for candidate in line]
        lam, value = [candidate.lam for candidate in line], [candidate.value for candidate in line]
        axes.errorbar(lam, value, yerr=errors, marker="o", markersize=4, capsize=2, label=name)
    if chart.chosen is not None:
        lam, value = [chart.chosen.lam], [chart.chosen.value]
        axes.plot(lam, value, "o", markersize=12, fillstyle="none", color="black", label="chosen")
    axes.set_xlabel("lam")
    axes.set_ylabel(plot_text(metric))
    axes.set_title(f"{plot_text(tasks)}, held-out fifth, n = {candidates[0].documents}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="best")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    write_atomic(path, content.getvalue())
