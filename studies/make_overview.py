"""Draw docs/images/overview.png, the image that the README and the docs' home page open with.

    python studies/make_overview.py [FILE]

The heat map is the shipped artifact. The gates are read from docs/study.json, which studies/make_study.py
writes from the runs that docs/which-heads.md describes. Nothing is run here.
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
# Studies of docs/study.json, and the gates of each that are shown.
STUDIES = ("scenes", "easy-vqa")
GATES = {
    "gradient": "its own gradient", "base on captions": "base's gradient, captions", "gradient, shuffled 0": "shuffled",
}  # fmt: skip
KL = 0.002
INK, GREY, LINE, ACCENT = "#1f2933", "#616e7c", "#d9dee4", "#3f51b5"


@dataclass(frozen=True)
class Row:
    """A gate on a model.

    Attributes:
        model: Name of the model.
        scores: What the gate is made of.
        log_odds: Change of the mean log-odds of the right answer on test documents, in nats.
        log_loss: Log-loss minus the vanilla model's, in nats: (mean, low, high) of the 95 % interval.
        conclusion: The study's.
    """

    model: str
    scores: str
    log_odds: float
    log_loss: tuple[float, float, float]
    conclusion: str


def gates(study: dict[str, Any]) -> list[Row]:
    """The shown gates of both children, at equal strength."""
    found = []
    for name in STUDIES:
        [(model, own)] = study["studies"][name]["models"].items()
        rows = {
            row["source"]: row for row in own["rows"] if row["target"] == KL or row["source"] not in GATES
        }
        for source, title in GATES.items():
            if source in rows:
                row = rows[source]
                loss = row["difference"]["log_loss"]
                interval = (loss["mean"], loss["low"], loss["high"])
                found.append(Row(model, title, row["log_odds"]["test"]["mean"], interval, row["conclusion"]))
    return found


def draw(scores: TruthScores, study: dict[str, Any], path: Path) -> None:
    """The heat map above the gates, 1,600 pixels wide."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.3), facecolor="white")
    _heat_map(figure, scores)
    _gates(figure, study)
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


def _gates(figure: Any, study: dict[str, Any]) -> None:
    rows = gates(study)
    counts = [
        own["vanilla"]["documents"] for name in STUDIES for own in study["studies"][name]["models"].values()
    ]
    _heading(
        figure, 0.455, "Does a gate made of such scores help the family's vision-language models?",
        f"Gates of equal strength (KL {KL:g}), n = {' and '.join(map(str, counts))} fresh questions; "
        "natural logarithms.",
    )  # fmt: skip
    axes = figure.add_axes((0.025, 0.03, 0.95, 0.325))
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.4, -1.1))
    axes.axis("off")
    headings = (
        (0.0, "model", "left"), (0.21, "gate from", "left"), (0.53, "log-odds of right", "right"),
        (0.68, "log-loss, 95 %: left is better", "center"), (1.0, "log-loss", "right"),
    )  # fmt: skip
    for x, text, side in headings:
        axes.text(x, -0.72, text, fontsize=8.5, color=GREY, ha=side, va="center")
    axes.plot([0, 1], [-0.38, -0.38], color=INK, linewidth=0.8)
    reach = max(abs(end) for row in rows for end in row.log_loss[1:])

    def place(nats: float) -> float:
        return 0.68 + 0.11 * nats / reach

    axes.plot([place(0)] * 2, [-0.3, len(rows) - 0.75], color=LINE, linewidth=1)
    for y, row in enumerate(rows):
        weight = "bold" if row.conclusion.startswith("better than the vanilla model and") else "normal"
        value, low, high = row.log_loss
        axes.text(0.0, y, row.model.removeprefix("smollm2-135m-"), fontsize=9.5, color=INK, va="center")
        axes.text(0.21, y, row.scores, fontsize=9, color=INK, va="center")
        axes.text(0.53, y, f"{row.log_odds:+.2f}", fontsize=9.5, color=INK, va="center", ha="right")
        axes.plot([place(low), place(high)], [y, y], color=ACCENT, linewidth=1.8, solid_capstyle="round")
        axes.plot([place(value)], [y], "o", color=ACCENT, markersize=5)
        verdict = _verdict(row.conclusion)
        axes.text(
            1.0,
            y,
            f"{value:+.4f}, {verdict}",
            fontsize=9,
            color=INK,
            va="center",
            ha="right",
            fontweight=weight,
        )
    axes.plot([0, 1], [len(rows) - 0.5] * 2, color=LINE, linewidth=0.8)


def _verdict(conclusion: str) -> str:
    """A study's conclusion in two words."""
    if conclusion.startswith("better than the vanilla model and"):
        return "better"
    return "worse" if conclusion == "makes the answers worse" else "no difference"


def main(path: Path) -> None:
    """Draw from the shipped artifact and the committed study."""
    study = json.loads((DOCS / "study.json").read_text(encoding="utf-8"))
    draw(TruthScores.resolve(ARTIFACT), study, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "images" / "overview.png")
