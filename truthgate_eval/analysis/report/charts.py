"""The report's drawings as numbers: where on a drawing a sweep's points and a difference's interval stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import MaxNLocator

_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 40


@dataclass(frozen=True)
class Axis:
    """A linear axis: values `low` to `high` become places `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of a value, to a tenth."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks(self, most: int) -> list[dict[str, Any]]:
        """At most so many round values on the axis, each with its place and text."""
        values = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        return [{"at": self(x), "text": f"{x:.4g}"} for x in values if self.low <= x <= self.high]


def axis_over(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis for some values, with a little room at both ends."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low - room, high + room, start, end)


def sweep_chart(sweep: Mapping[str, Any]) -> dict[str, Any]:
    """A sweep's metric over lam: a line for each norm and site, the vanilla model across, the choice marked.

    Args:
        sweep: As in `report_artifacts.collect_artifact`.

    Returns:
        Places in an SVG of `width` x `height`.
    """
    points = sweep["points"]
    ends = [p["value"] + sign * (p["stderr"] or 0) for p in points for sign in (-1, 1)]
    x = axis_over([p["lam"] for p in points], _LEFT, _WIDTH - _RIGHT)
    y = axis_over(ends, _HEIGHT - _BOTTOM, _TOP)
    gated = [p for p in points if p["lam"] != 0]
    return {
        "width": _WIDTH,
        "height": _HEIGHT,
        "plot": {"left": _LEFT, "right": _WIDTH - _RIGHT, "top": _TOP, "bottom": _HEIGHT - _BOTTOM},
        "x_ticks": x.ticks(8),
        "y_ticks": y.ticks(6),
        "vanilla": [_mark(p, x, y, sweep) for p in points if p["lam"] == 0],
        "lines": [
            {
                "name": f"{norm}, {site}",
                "points": sorted(
                    (_mark(p, x, y, sweep) for p in gated if (p["norm"], p["site"]) == (norm, site)),
                    key=lambda mark: mark["x"],
                ),
            }
            for norm, site in dict.fromkeys((p["norm"], p["site"]) for p in gated)
        ],
    }


def _mark(point: Mapping[str, Any], x: Axis, y: Axis, sweep: Mapping[str, Any]) -> dict[str, Any]:
    error = point["stderr"] or 0
    what = "vanilla" if point["lam"] == 0 else f"lam {point['lam']:g}, {point['norm']}, {point['site']}"
    spread = f" ± {error:.4f}" if error else ""
    return {
        "x": x(point["lam"]),
        "y": y(point["value"]),
        "low": y(point["value"] - error),
        "high": y(point["value"] + error),
        "chosen": point["chosen"],
        "text": f"{what}\n{sweep['metric']} {point['value']:.4f}{spread}, n = {point['documents']}"
        + ("\nchosen" if point["chosen"] else ""),
    }


def difference_axis(comparisons: Sequence[Mapping[str, Any]], width: int) -> Axis:
    """One axis, with 0 on it, for the accuracy intervals of a leaderboard."""
    ends = [one["differences"]["acc"][end] for one in comparisons for end in ("low", "high")]
    return axis_over([0.0, *ends], 3, width - 3)
