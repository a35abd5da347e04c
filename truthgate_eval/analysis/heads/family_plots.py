"""Plots of a family's artifacts: the matrix, a head-by-head scatter plot, and heat maps side by side.

The paper's figures 1b, 1c, 2 and 3.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from truthgate_eval.analysis.formatting import format_interval
from truthgate_eval.analysis.heads.correlation import SCOPES, Array, Measure, Scope
from truthgate_eval.analysis.heads.heat_map import measured_quantity
from truthgate_eval.errors import TruthGateError
from truthgate_eval.escaping import plot_text
from truthgate_eval.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from truthgate_eval.analysis.heads.family import FamilyMatrix, FamilyMember

PLOT_SUFFIXES = (".png", ".svg", ".pdf")
# In a matrix of more members, the cells are too small for an interval.
_INTERVALS_UP_TO = 8


def matrix_figure(family: FamilyMatrix, measure: Measure) -> Figure:
    """The matrix of one measure, over all heads on the left and within layers on the right.

    Colours run from -1 to 1 in every plot, white is 0; a thick line separates families.
    """
    from matplotlib.figure import Figure

    side = 1.6 + 0.85 * len(family.members)
    figure = Figure(figsize=(2 * side + 1.2, side + 0.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, scope in zip(panels, SCOPES, strict=True):
        image = _draw_matrix(axes, family, measure, scope)
    symbol = "Pearson's r" if measure == "pearson" else "Spearman's rho"
    figure.colorbar(image, ax=list(panels), label=symbol, shrink=0.85)
    return figure


def _draw_matrix(axes: Axes, family: FamilyMatrix, measure: Measure, scope: Scope) -> AxesImage:
    values = family.coefficients(measure, scope)
    members = family.members
    off_diagonal = np.where(np.eye(len(members), dtype=bool), np.nan, values)
    axes.set_facecolor("0.85")
    image = axes.imshow(off_diagonal, cmap="RdBu_r", vmin=-1, vmax=1)
    labels = [plot_text(member.label) for member in members]
    axes.set_xticks(range(len(members)), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(members)), [_with_family(member) for member in members])
    axes.set_title(scope)
    axes.tick_params(length=0)
    for row, column in zip(*np.nonzero(np.isfinite(off_diagonal)), strict=True):
        one = family.pair(measure, scope, int(row), int(column))
        colour = "white" if abs(one.r) > 0.65 else "black"
        axes.text(column, row, f"{one.r:.2f}", ha="center", va="bottom", color=colour)
        if len(members) <= _INTERVALS_UP_TO and math.isfinite(one.low):
            interval = format_interval(one.low, one.high, digits=2)
            axes.text(column, row + 0.12, interval, ha="center", va="top", color=colour, fontsize=6.5)
    for index in range(1, len(members)):
        if members[index].family != members[index - 1].family:
            axes.axhline(index - 0.5, color="black", linewidth=2)
            axes.axvline(index - 0.5, color="black", linewidth=2)
    return image


def _with_family(member: FamilyMember) -> str:
    return plot_text(f"{member.label}\n({member.family} family)" if member.family else member.label)


def scatter_figure(family: FamilyMatrix) -> Figure:
    """Every head of two members as a point: scores on the left, without each layer's mean on the right.

    Raises:
        TruthGateError: The members are not two.
    """
    from matplotlib.figure import Figure

    check_two(len(family.members))
    first, second = family.members
    layers, heads = first.scores.shape
    colours = np.repeat(np.arange(layers), heads)
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, scope in zip(panels, SCOPES, strict=True):
        x, y = (_scores(member, scope).ravel() for member in family.members)
        points = axes.scatter(x, y, c=colours, cmap="viridis", s=12, alpha=0.8, linewidths=0)
        r, rho = (family.pair(measure, scope, 0, 1).r for measure in ("pearson", "spearman"))
        axes.set_title(f"{scope}: Pearson {r:.3f}, Spearman {rho:.3f}", fontsize=10)
        minus = "" if scope == "all heads" else " - layer's mean"
        axes.set(
            xlabel=f"{plot_text(first.label)}: {measured_quantity(first.scores)}{minus}",
            ylabel=f"{plot_text(second.label)}: {measured_quantity(second.scores)}{minus}",
        )
        axes.grid(linewidth=0.3)
    figure.colorbar(points, ax=list(panels), label="layer")
    return figure


def check_two(members: int) -> None:
    """Raise `TruthGateError` unless there are two members, which a scatter plot needs."""
    if members != 2:
        raise TruthGateError(f"a scatter plot shows two artifacts, got {members}: give two, or use --plot")


def _scores(member: FamilyMember, scope: Scope) -> Array:
    scores = member.scores.scores.astype(np.float64)
    return scores - scores.mean(axis=1, keepdims=True) if scope == "within layers" else scores


def heat_maps_figure(family: FamilyMatrix) -> Figure:
    """Every member's scores, layers x heads, side by side.

    Each map has its own scale: the maps compare which heads score high, not how high.
    """
    from matplotlib.figure import Figure

    layers, heads = family.members[0].scores.shape
    columns = min(4, len(family.members))
    rows = math.ceil(len(family.members) / columns)
    width, height = max(2.6, 1.3 + 0.09 * heads), max(2.2, 1.0 + 0.09 * layers)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, member in zip(grid, family.members, strict=False):
        image = axes.imshow(member.scores.scores, aspect="auto", cmap="viridis", interpolation="nearest")
        axes.set_title(_with_family(member), fontsize=9)
        axes.set(xlabel="head", ylabel="layer")
        axes.set_xticks(range(0, heads, max(1, heads // 4)))
        axes.set_yticks(range(0, layers, max(1, layers // 8)))
        figure.colorbar(image, ax=axes, label=measured_quantity(member.scores))
    for axes in grid[len(family.members) :]:
        axes.set_axis_off()
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure atomically, in the format of the path's suffix."""
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.lower().removeprefix("."), dpi=160)
    write_atomic(path, content.getvalue())
