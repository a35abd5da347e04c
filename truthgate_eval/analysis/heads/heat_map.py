"""Heat maps of score artifacts, layers x heads as in the paper, as image files and in the terminal."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from truthgate_eval.analysis.formatting import format_interval, score_decimals
from truthgate_eval.errors import ScoresError, first_line
from truthgate_eval.escaping import plot_text
from truthgate_eval.files import write_atomic
from truthgate_eval.gating.scores import TruthScores

# Dark to bright in equal steps of brightness (indigo, blue, green, yellow).
_COLOURS = ((59, 15, 112), (42, 90, 160), (30, 150, 130), (110, 200, 80), (250, 230, 40))

_SHADES = " ░▒▓█"
_MEASURED = {"accuracy": "validation accuracy", "auroc": "AUROC", "context-gain": "gain over no context"}


def top_heads(scores: TruthScores, count: int) -> Table:
    """The `count` heads with the highest truth scores, best first."""
    table = Table(title=f"Top {count} of {scores.scores.size} heads", title_justify="left")
    extras = [name for name in ("stderr", "auroc", "train_accuracy") if getattr(scores, name) is not None]
    for column in ("layer", "head", "score", *extras):
        table.add_column(column.replace("_", " "), justify="right")
    digits = score_decimals(float(np.abs(scores.scores).max()))
    order = np.argsort(-scores.scores, axis=None, kind="stable")[:count]
    for layer, head in zip(*np.unravel_index(order, scores.shape), strict=True):
        cells = [f"{scores.scores[layer, head]:.{digits}f}"]
        for name in extras:
            decimals = digits if name == "stderr" else 3
            cells.append(f"{getattr(scores, name)[layer, head]:.{decimals}f}")
        table.add_row(str(layer), str(head), *cells)
    return table


def terminal_heat_map(scores: TruthScores, *, colour: bool) -> Group:
    """A heat map for the terminal, layers down and heads across.

    Args:
        scores: The artifact.
        colour: Draw with colours; otherwise with shades of grey characters.
    """
    low, high = float(scores.scores.min()), float(scores.scores.max())
    digits = score_decimals(max(abs(low), abs(high)))
    lines = [Text(f"layer  heads 0 to {scores.shape[1] - 1}", style="dim")]
    for layer, row in enumerate(scores.scores):
        line = Text(f"{layer:5d}  ")
        for value in row:
            line.append_text(_cell(float(value), low, high, colour))
        lines.append(line.append(f"  {row.mean():.{digits}f}", style="dim"))
    legend = Text("       ")
    for step in np.linspace(low, high, 10):
        legend.append_text(_cell(float(step), low, high, colour))
    ends = format_interval(low, high, digits)
    lines.append(legend.append(f"  {ends}; at the right, each layer's mean", style="dim"))
    return Group(*lines)


def _cell(value: float, low: float, high: float, colour: bool) -> Text:
    if colour:
        return Text("  ", style=f"on {_colour(value, low, high)}")
    share = (value - low) / (high - low) if high > low else 0.0
    return Text(2 * _SHADES[min(int(share * len(_SHADES)), len(_SHADES) - 1)])


def save_heat_map(scores: TruthScores, path: Path) -> None:
    """Draw the layers x heads heat map (the paper's figures 1a and 2) into an image file."""
    from matplotlib.figure import Figure

    layers, heads = scores.shape
    figure = Figure(
        figsize=(max(4.5, 1.8 + 0.22 * heads), max(3.2, 1.2 + 0.2 * layers)), layout="constrained"
    )
    axes = figure.add_subplot()
    image = axes.imshow(scores.scores, aspect="auto", cmap="viridis", interpolation="nearest")
    axes.set(xlabel="head", ylabel="layer", title=_title(scores))
    axes.set_xticks(range(0, heads, max(1, heads // 8)))
    axes.set_yticks(range(0, layers, max(1, layers // 10)))
    figure.colorbar(image, ax=axes, label=measured_quantity(scores))
    content = io.BytesIO()
    try:
        figure.savefig(content, format=path.suffix.lower().removeprefix(".") or "png", dpi=160)
    except ValueError as error:  # matplotlib does not know the format
        raise ScoresError(f"the plot cannot be written to {path}: {first_line(error)}") from error
    write_atomic(path, content.getvalue())


def measured_quantity(scores: TruthScores) -> str:
    """What an artifact's numbers are, for an axis or a colour bar."""
    meta = scores.metadata
    kind = meta.get("score") or meta.get("kind") or ("accuracy" if "probe" in meta else None)
    return "truth score" if kind is None else _MEASURED.get(str(kind), plot_text(str(kind)))


def _title(scores: TruthScores) -> str:
    task = scores.metadata.get("task") or scores.metadata.get("imported_from") or ""
    return plot_text(f"{scores.model}\n{task}" if task else scores.model)


def _colour(value: float, low: float, high: float) -> str:
    position = (value - low) / (high - low) * (len(_COLOURS) - 1) if high > low else 0.0
    index = min(int(position), len(_COLOURS) - 2)
    left, right = np.array(_COLOURS[index]), np.array(_COLOURS[index + 1])
    red, green, blue = (left + (position - index) * (right - left)).round().astype(int)
    return f"rgb({red},{green},{blue})"
