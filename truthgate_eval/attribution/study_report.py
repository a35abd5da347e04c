"""A study as Markdown, as JSON and as one figure."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from truthgate_eval.attribution.study import StudyResult, row_name
from truthgate_eval.credentials import mask_credentials
from truthgate_eval.escaping import markdown_text, plot_text
from truthgate_eval.files import write_atomic

HEAD = (
    "gate", "KL", "strength", "log-odds, scoring", "log-odds, test", "log-loss", "vs vanilla [95 %]",
    "with offset [95 %]", "p (Holm)", "accuracy", "AUROC", "conclusion",
)  # fmt: skip


def table_rows(result: StudyResult) -> list[list[str]]:
    """The rows of one model's table under `HEAD`, controls after the scores that they belong to."""
    vanilla = result.vanilla
    figures = (f"{vanilla['log_loss']:.4f}", "", "", "", f"{vanilla['accuracy']:.3f}")
    rows = [["vanilla", "0", "0", "", "", *figures, _number(vanilla["auroc"], ".4f"), ""]]
    for row in result.rows:
        difference = row["difference"]
        offset = difference.get("log_loss_offset")
        rows.append(
            [
                row_name(row),
                f"{row['divergence']:.3g}",
                f"{row['strength']:.3g}",
                _interval(row["log_odds"]["scoring"], 3),
                _interval(row["log_odds"]["test"], 3),
                f"{row['log_loss']:.4f}",
                _interval(difference["log_loss"], 4),
                "" if offset is None else _interval(offset, 4),
                _number(row.get("p_holm"), ".2g"),
                f"{row['accuracy']:.3f}",
                _number(row["auroc"], ".4f"),
                row["conclusion"],
            ]
        )
    return rows


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _interval(own: Mapping[str, float], digits: int) -> str:
    mean, low, high = (round(own[name], digits) + 0.0 for name in ("mean", "low", "high"))  # no -0.000
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def markdown(results: Mapping[str, StudyResult], key: Mapping[str, Any]) -> str:
    """The study as a Markdown page, a section for each model."""
    lines = ["# Study", "", *(f"* {name}: {markdown_text(str(value))}" for name, value in key.items()), ""]
    for name, result in results.items():
        lines += [f"## {markdown_text(name)}", "", *_section(result)]
    return "\n".join(lines)


def _section(result: StudyResult) -> list[str]:
    lines = [
        f"Evaluated on {result.vanilla['documents']} documents in {result.vanilla['clusters']} clusters. "
        "Log-odds and log-losses are differences from the vanilla model, with 95 % intervals. Log-odds "
        "count yes and no documents equally. The offset is the best constant on the log-odds of yes, one "
        "for the gated and one for the vanilla model.",
        "",
        *_table(HEAD, table_rows(result)),
        *(
            f"{markdown_text(source)}: no gate was better than none, so it has no row.\n"
            for source in result.empty
        ),
        "Correlation within layers, divided by the geometric mean of both reliabilities in brackets; the "
        "reliability of each kind (split halves, stepped up) on the diagonal:",
        "",
        *_table(["", *result.correlations], _correlation_rows(result)),
    ]
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [_line(head), _line(["---"] * len(head)), *map(_line, rows), ""]


def _correlation_rows(result: StudyResult) -> list[list[str]]:
    reliability = {
        name: own.get("within") if isinstance(own, dict) else None for name, own in result.reliability.items()
    }

    def cell(one: str, other: str, r: float | None) -> str:
        if r is None:
            return ""
        if one == other:
            return f"({_number(reliability.get(one), '.2f') or '?'})"
        known = [value for name in (one, other) if (value := reliability.get(name)) is not None and value > 0]
        return f"{r:.2f}" + (f" [{r / math.sqrt(known[0] * known[1]):.2f}]" if len(known) == 2 else "")

    return [
        [one, *(cell(one, other, r) for other, r in row.items())] for one, row in result.correlations.items()
    ]


def _line(cells: Any) -> str:
    return "| " + " | ".join(markdown_text(str(cell)) for cell in cells) + " |"


def save(results: Mapping[str, StudyResult], key: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `study.json`, `study.md` and `study.png`; each atomically.

    Args:
        results: A study of each model, by the model's name.
        key: What was compared on what, for the page and the JSON file.
        folder: Where to.

    Returns:
        The files.
    """
    key = mask_credentials(key)
    content = {"study": dict(key), "models": {name: vars(result) for name, result in results.items()}}
    files = {
        "study.json": json.dumps(content, indent=1).encode(),
        "study.md": markdown(results, key).encode(),
        "study.png": figure(results),
    }
    for name, data in files.items():
        write_atomic(folder / name, data)
    return [folder / name for name in files]


def figure(results: Mapping[str, StudyResult]) -> bytes:
    """Log-loss against the vanilla model's for every gate, with 95 % intervals, a panel a model: a PNG."""
    from matplotlib.figure import Figure

    heights = [max(len(result.rows), 1) for result in results.values()]
    chart = Figure(figsize=(8, 0.24 * sum(heights) + 1.1 * len(results) + 0.4), layout="constrained")
    panels = chart.subplots(len(results), 1, squeeze=False, height_ratios=heights)[:, 0]
    targets = sorted({row["target"] for result in results.values() for row in result.rows})
    colours = {target: f"C{i}" for i, target in enumerate(targets)}
    for axes, (name, result) in zip(panels, results.items(), strict=True):
        _draw(axes, result, colours)
        axes.set_title(plot_text(name), fontsize=9, loc="left")
    panels[-1].set_xlabel("log-loss minus the vanilla model's, in nats: left is better", fontsize=9)
    for target in targets:
        label = f"KL {target:g}" if target else "as fitted"
        panels[0].plot([], [], "o", color=colours[target], markersize=4, label=label)
    panels[0].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    content = io.BytesIO()
    chart.savefig(content, format="png", dpi=150)
    return content.getvalue()


def _draw(axes: Any, result: StudyResult, colours: Mapping[float, str]) -> None:
    rows = list(reversed(result.rows))
    for position, row in enumerate(rows):
        own = row["difference"]["log_loss"]
        axes.errorbar(
            own["mean"], position, xerr=[[own["mean"] - own["low"]], [own["high"] - own["mean"]]],
            marker="o", markersize=4, capsize=2, color=colours[row["target"]],
            alpha=0.4 if row["is_control"] else 1.0,
        )  # fmt: skip
    axes.axvline(0, color="0.45", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(rows)), [plot_text(row_name(row)) for row in rows], fontsize=7)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.spines[["top", "right"]].set_visible(False)
