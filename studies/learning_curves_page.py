"""The tables and the figure of docs/sample-size.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from learning_curves import FEATURES, SOLVERS, Row, expected_r, within_layers

_COLUMNS = (
    "site", "features", "solver", "documents", "mean", "best", "reliability within layers",
    "r with other documents", "r expected", "fit, s",
)  # fmt: skip


def tables(results: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """One table a source.

    Args:
        results: The rows and the settings.
        titles: Of each source.
    """
    found = results["settings"]
    parts = ["![Reliability and scores against documents](images/sample-size.png)"]
    for source, title in titles.items():
        rows = sorted((row for row in results["rows"] if row["source"] == source), key=_order)
        last = next(row["documents"] for row in rows if row["part"] == "last")
        lines = [f"| {' | '.join(_COLUMNS)} |", "| --- | --- | --- |" + " ---: |" * (len(_COLUMNS) - 3)]
        lines += [_line(row, rows, found["documents"][source]) for row in rows if row["part"] == "first"]
        about = f"{found['documents'][source]} documents captured; the other documents are the last {last}."
        parts += [f"### {title}", about, "\n".join(lines)]
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    threads = f"{found['threads']} thread{'s' * (found['threads'] > 1)}"
    parts.append("[sample-size.json](sample-size.json) has these figures, with the score of every head.")
    return "\n" + "\n\n".join([*parts, f"{found['machine']}, {threads}; {versions}."]) + "\n\n"


def _order(row: Row) -> tuple[Any, ...]:
    """A curve's points one below the other."""
    return row["site"] == "post", row["features"], row["solver"], row["documents"]


def _line(row: Row, rows: list[Row], documents: int) -> str:
    """A row of the table; without a comparison where some documents are among the last ones, too."""
    same = ("site", "features", "solver")
    last = next(own for own in rows if own["part"] == "last" and all(own[key] == row[key] for key in same))
    disjoint = row["documents"] + last["documents"] <= documents
    cells = [
        *(row[key] for key in same), f"{row['documents']:,}", f"{row['mean']:.3f}", f"{row['best']:.3f}",
        _number(row["reliability"].get("within", math.nan)),
        _number(within_layers(row, last)) if disjoint else "",
        _number(expected_r(row, last)) if disjoint else "",
        f"{row['seconds']:.1f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _number(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.2f}"


def draw(results: Mapping[str, Any], titles: Mapping[str, str], path: Path) -> None:
    """Site `pre`: a column for each source; reliability within layers above, best and mean score below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.4), layout="constrained")
    panels = figure.subplots(2, len(titles), squeeze=False, sharey="row", sharex="col")
    for (source, title), (above, below) in zip(titles.items(), panels.T, strict=True):
        for number, solver in enumerate(SOLVERS):
            for features, style in zip(FEATURES, ("-", ":"), strict=True):
                curve = _curve(results["rows"], source, features, solver)
                documents = [row["documents"] for row in curve]
                line = {"linestyle": style, "color": f"C{number}", "marker": "."}
                name = f"{solver}, {features}"
                reliability = [row["reliability"].get("within", math.nan) for row in curve]
                above.plot(documents, reliability, label=name, **line)
                below.plot(documents, [row["best"] for row in curve], label=name, **line)
                below.plot(documents, [row["mean"] for row in curve], alpha=0.4, **line)
        above.set(title=title.split(",")[0], xscale="log", ylabel="reliability within layers")
        above.set_xticks(documents, [f"{size:,}" for size in documents])
        above.set_xticks([], minor=True)
        below.set(xlabel="documents", ylabel="best score; pale: mean")
        above.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version that drew it, so that two runs give the same bytes.
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _curve(rows: list[Row], source: str, features: str, solver: str) -> list[Row]:
    key = {"source": source, "site": "pre", "features": features, "solver": solver, "part": "first"}
    return sorted((row for row in rows if key.items() <= row.items()), key=lambda row: row["documents"])
