"""The report's charts as numbers: positions of a sweep's candidates and of a difference's interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import MaxNLocator

from truthgate_eval.gating.sweep import Candidate
from truthgate_eval.gating.sweep_plot import make_sweep_chart

_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 40


@dataclass(frozen=True)
class Axis:
    """A linear axis: the values `low` to `high` are at the positions `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The position of a value, rounded to a tenth."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks(self, most: int) -> list[dict[str, Any]]:
        """At most so many round values on the axis, each with its position and text."""
        values = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        return [{"at": self(x), "text": f"{x:.4g}"} for x in values if self.low <= x <= self.high]


def axis_over(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis for some values, with a margin at both ends."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low - margin, high + margin, start, end)


def sweep_chart(sweep: Mapping[str, Any]) -> dict[str, Any]:
    """A sweep's metric over lam: a line for each norm and site, the vanilla model, the choice marked.

    Args:
        sweep: As in `report.artifacts.collect_artifact`.

    Returns:
        Positions in an SVG of `width` x `height`.
    """
    points = sweep["points"]
    candidates = [Candidate(**{key: value for key, value in p.items() if key != "chosen"}) for p in points]
    chosen = next((one for one, p in zip(candidates, points, strict=True) if p["chosen"]), None)
    chart = make_sweep_chart(candidates, chosen)
    ends = [one.value + sign * (one.stderr or 0) for one in candidates for sign in (-1, 1)]
    x = axis_over([one.lam for one in candidates], _LEFT, _WIDTH - _RIGHT)
    y = axis_over(ends, _HEIGHT - _BOTTOM, _TOP)

    def marks(line: Sequence[Candidate]) -> list[dict[str, Any]]:
        return [_mark(one, x, y, sweep["metric"], is_chosen=one is chart.chosen) for one in line]

    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "plot": {"left": _LEFT, "right": _WIDTH - _RIGHT, "top": _TOP, "bottom": _HEIGHT - _BOTTOM},
        "x_ticks": x.ticks(8),
        "y_ticks": y.ticks(6),
        "vanilla": marks(chart.vanilla),
        "lines": [{"name": name, "points": marks(line)} for name, line in chart.lines.items()],
    }


def _mark(one: Candidate, x: Axis, y: Axis, metric: str, *, is_chosen: bool) -> dict[str, Any]:
    error = one.stderr or 0
    gate = "vanilla" if one.lam == 0 else f"lam {one.strength}, {one.norm}, {one.site}"
    stderr = f" ± {error:.4f}" if error else ""
    return {
        "x": x(one.lam),
        "y": y(one.value),
        "low": y(one.value - error),
        "high": y(one.value + error),
        "chosen": is_chosen,
        "text": f"{gate}\n{metric} {one.value:.4f}{stderr}, n = {one.documents}"
        + ("\nchosen" if is_chosen else ""),
    }


def difference_axis(comparisons: Sequence[Mapping[str, Any]], width: int) -> Axis:
    """One axis, with 0 on it, for the accuracy intervals of a task leaderboard."""
    ends = [one["differences"]["acc"][end] for one in comparisons for end in ("low", "high")]
    return axis_over([0.0, *ends], 3, width - 3)
