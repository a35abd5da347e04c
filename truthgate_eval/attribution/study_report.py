"""A study as Markdown, as JSON and as one figure."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from truthgate_eval.attribution.study import StudyResult, is_control
from truthgate_eval.files import write_atomic

HEAD = ("gate", "KL", "strength", "log-loss", "vs vanilla [95 %]", "p", "accuracy", "AUROC", "conclusion")


def table_rows(result: StudyResult) -> list[list[str]]:
    """The rows of the table, controls after the scores that they belong to."""
    rows = [_vanilla_row(result.vanilla)]
    for row in result.rows:
        difference = row["difference"]["log_loss"]
        rows.append(
            [
                f"{row['source']}, {row['action']}",
                f"{row['divergence']:.3g}",
                f"{row['strength']:.3g}",
                f"{row['log_loss']:.4f}",
                f"{difference['mean']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]",
                f"{difference['p']:.2g}",
                f"{row['accuracy']:.3f}",
                _number(row["auroc"], ".4f"),
                row["conclusion"],
            ]
        )
    return rows


def _vanilla_row(vanilla: Mapping[str, Any]) -> list[str]:
    figures = (
        f"{vanilla['log_loss']:.4f}",
        "",
        "",
        f"{vanilla['accuracy']:.3f}",
        _number(vanilla["auroc"], ".4f"),
    )
    return ["vanilla", "0", "0", *figures, ""]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def markdown(result: StudyResult, key: Mapping[str, Any]) -> str:
    """The study as a Markdown page."""
    lines = [
        "# Study",
        "",
        *(f"* {name}: {value}" for name, value in key.items()),
        f"* evaluated on {result.vanilla['documents']} documents in {result.vanilla['clusters']} clusters",
        "",
        _line(HEAD),
        _line(["---"] * len(HEAD)),
        *(_line(row) for row in table_rows(result)),
        "",
        "Reliability within layers (split halves, stepped up): "
        + ", ".join(
            f"{name} {own['within']:.2f}" for name, own in result.reliability.items() if isinstance(own, dict)
        ),
        "",
        "Correlation within layers:",
        "",
        _line(["", *result.correlations]),
        _line(["---"] * (len(result.correlations) + 1)),
        *(
            _line([name, *(f"{value:.2f}" for value in row.values())])
            for name, row in result.correlations.items()
        ),
        "",
    ]
    return "\n".join(lines)


def _line(cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def save(result: StudyResult, key: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `study.json`, `study.md` and `study.png`; each atomically.

    Args:
        result: The study.
        key: What was compared on what, for the page and the JSON file.
        folder: Where to.

    Returns:
        The files.
    """
    content = {"study": dict(key), **vars(result)}
    files = {
        "study.json": json.dumps(content, indent=1).encode(),
        "study.md": markdown(result, key).encode(),
        "study.png": figure(result),
    }
    for name, data in files.items():
        write_atomic(folder / name, data)
    return [folder / name for name in files]


def figure(result: StudyResult) -> bytes:
    """Log-loss against the vanilla model's for every gate, with 95 % intervals: a PNG."""
    from matplotlib.figure import Figure

    rows = list(reversed(result.rows))
    chart = Figure(figsize=(8, 0.24 * len(rows) + 1.3), layout="constrained")
    axes = chart.subplots()
    targets = sorted({row["target"] for row in rows})
    colours = {target: f"C{i}" for i, target in enumerate(targets)}
    for position, row in enumerate(rows):
        own = row["difference"]["log_loss"]
        axes.errorbar(
            own["mean"], position, xerr=[[own["mean"] - own["low"]], [own["high"] - own["mean"]]],
            marker="o", markersize=4, capsize=2, color=colours[row["target"]],
            alpha=0.4 if is_control(row) else 1.0,
        )  # fmt: skip
    axes.axvline(0, color="0.45", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(rows)), [f"{row['source']}, {row['action']}" for row in rows], fontsize=7)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlabel("log-loss minus the vanilla model's, in nats: left is better", fontsize=9)
    for target in targets:
        axes.plot([], [], "o", color=colours[target], markersize=4, label=f"KL {target:g}")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    chart.savefig(content, format="png", dpi=150)
    return content.getvalue()
