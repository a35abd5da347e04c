"""Draw docs/images/overview.png, the image that the README and the docs' home page open with.

    python studies/make_overview.py [FILE]

The heat map is the shipped artifact. The leaderboard is read from docs/results.json, which
studies/make_results.py writes from the runs that docs/results.md describes. Nothing is run here.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truthgate_eval.gating.scores import TruthScores

DOCS = Path(__file__).resolve().parent.parent / "docs"
ARTIFACT = "smollm2-135m-instruct__halueval-qa"
# Runs of docs/results.json in the reading of the paper's text, and what made their gates.
RUNS = {
    "vanilla": ("vanilla", "no gate"),
    "halueval-post-post": ("TruthProbe_LLM", "base, HaluEval-QA"),
    "scenes-text-post-post": ("TruthProbe_LLM", "base, captions as text"),
    "scenes-post-post": ("TruthProbe_MLLM", "child, images"),
    "shuffled-1": ("shuffled", "child, shuffled in layers"),
}
INK, GREY, LINE, ACCENT = "#1f2933", "#616e7c", "#d9dee4", "#3f51b5"


@dataclass(frozen=True)
class Row:
    """A row of the leaderboard.

    Attributes:
        method: Named as in `truthgate compare`.
        scores: The model and data that the gate's scores come from.
        accuracy: Percent, mean over the three splits.
        f1: Percent, the same mean.
        difference: Accuracy minus vanilla in points: (value, low, high) of the 95 % interval; None for vanilla.
        verdict: `better`, `worse` or `no difference`; empty for vanilla.
    """

    method: str
    scores: str
    accuracy: float
    f1: float
    difference: tuple[float, float, float] | None
    verdict: str


def leaderboard(results: dict[str, Any]) -> list[Row]:
    """The rows of the smollm2-135m-scenes leaderboard, mean over the splits of its polls."""
    rows = []
    for name, (method, scores) in RUNS.items():
        run = results["gating"]["child"]["runs"][name]
        mean, compared = run["cells"]["mean"], run["against_vanilla"].get("mean")
        found = compared["differences"]["acc"] if compared else None
        difference = (
            (100 * found["value"], 100 * found["low"], 100 * found["high"]) if found is not None else None
        )
        verdict = compared["verdict"] if compared else ""
        rows.append(Row(method, scores, 100 * mean["acc"], 100 * mean["f1"], difference, verdict))
    return rows


def draw(scores: TruthScores, results: dict[str, Any], path: Path) -> None:
    """The heat map above the leaderboard, 1,600 pixels wide."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.3), facecolor="white")
    _heat_map(figure, scores)
    _leaderboard(figure, results)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version that drew it, so that two runs give the same bytes.
    figure.savefig(path, dpi=200, metadata={"Software": None})


def _heading(figure: Any, y: float, title: str, detail: str) -> None:
    figure.text(0.025, y, title, fontsize=12, fontweight="bold", color=INK, va="top")
    figure.text(0.025, y - 0.052, detail, fontsize=8.5, color=GREY, va="top")


def _heat_map(figure: Any, scores: TruthScores) -> None:
    questions = scores.metadata["documents"]
    _heading(
        figure, 0.975, "Which heads separate truthful from hallucinated answers?",
        f"Truth score of each head: accuracy of a linear probe. SmolLM2-135M-Instruct, HaluEval-QA, "
        f"n = {questions} questions.",
    )  # fmt: skip
    axes = figure.add_axes((0.075, 0.575, 0.805, 0.27))
    image = axes.imshow(scores.scores.T, cmap="viridis", aspect="auto", interpolation="nearest")
    layers, heads = scores.shape
    axes.set_xticks([*range(0, layers, 5), layers - 1])
    axes.set_yticks(range(0, heads, 2))
    axes.set_xlabel("layer", fontsize=9, color=INK, labelpad=1)
    axes.set_ylabel("head", fontsize=9, color=INK)
    axes.tick_params(labelsize=8.5, colors=GREY, length=0)
    axes.set_xticks([layer - 0.5 for layer in range(1, layers)], minor=True)
    axes.set_yticks([head - 0.5 for head in range(1, heads)], minor=True)
    axes.grid(which="minor", color="white", linewidth=0.7)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, cax=figure.add_axes((0.9, 0.575, 0.015, 0.27)))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8.5, colors=GREY, length=0)


def _leaderboard(figure: Any, results: dict[str, Any]) -> None:
    rows, child = leaderboard(results), results["gating"]["child"]
    part = next(part for part in child["parts"] if part["name"] == "mean")
    distinct = results["polls"]["child"]["distinct"]
    gates = {tuple(child["runs"][name]["gate"].values()) for name in RUNS if name != "vanilla"}
    ((lam, norm, _),) = gates  # every run of the figure has the same
    gate = f"Gates: {norm}, lam = {lam}"
    _heading(
        figure, 0.455, "Does gating by these scores help the family's vision-language model?",
        f"smollm2-135m-scenes, n = {part['documents']:,} questions ({distinct:,} distinct) about "
        f"{part['clusters']} images. Percent. {gate}.",
    )  # fmt: skip
    axes = figure.add_axes((0.025, 0.03, 0.95, 0.325))
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.4, -1.1))
    axes.axis("off")
    headings = (
        (0.0, "run", "left"), (0.19, "scores from", "left"), (0.47, "acc", "right"), (0.545, "F1", "right"),
        (0.72, "points against vanilla, 95 %", "center"), (1.0, "verdict", "right"),
    )  # fmt: skip
    for x, text, side in headings:
        axes.text(x, -0.72, text, fontsize=8.5, color=GREY, ha=side, va="center")
    axes.plot([0, 1], [-0.38, -0.38], color=INK, linewidth=0.8)
    reach = max(abs(end) for row in rows if row.difference for end in row.difference[1:])

    def place(points: float) -> float:
        return 0.72 + 0.11 * points / reach

    axes.plot([place(0)] * 2, [-0.3, len(rows) - 0.75], color=LINE, linewidth=1)
    for y, row in enumerate(rows):
        weight = "bold" if row.method.startswith("TruthProbe") else "normal"
        axes.text(0.0, y, row.method, fontsize=9.5, color=INK, va="center", fontweight=weight)
        axes.text(0.19, y, row.scores, fontsize=9, color=INK, va="center")
        axes.text(0.47, y, f"{row.accuracy:.2f}", fontsize=9.5, color=INK, va="center", ha="right")
        axes.text(0.545, y, f"{row.f1:.2f}", fontsize=9.5, color=INK, va="center", ha="right")
        if row.difference is not None:
            value, low, high = row.difference
            axes.plot([place(low), place(high)], [y, y], color=ACCENT, linewidth=1.8, solid_capstyle="round")
            axes.plot([place(value)], [y], "o", color=ACCENT, markersize=5)
            axes.text(1.0, y, f"{value:+.2f}, {row.verdict}", fontsize=9, color=INK, va="center", ha="right")
    axes.plot([0, 1], [len(rows) - 0.5] * 2, color=LINE, linewidth=0.8)


def main(path: Path) -> None:
    """Draw from the shipped artifact and the committed results."""
    results = json.loads((DOCS / "results.json").read_text(encoding="utf-8"))
    draw(TruthScores.resolve(ARTIFACT), results, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "images" / "overview.png")
