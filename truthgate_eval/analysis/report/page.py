"""A report as one HTML page that needs no network and no other file.

All text goes through jinja2's escaping or into a JSON block that the page's script reads. A content security
policy allows no script but that one, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from truthgate_eval.analysis.formatting import format_p_value, format_points
from truthgate_eval.analysis.leaderboard.cells import METRIC_TITLES, format_change, format_figure
from truthgate_eval.analysis.report.charts import difference_axis, sweep_chart
from truthgate_eval.escaping import visible_values
from truthgate_eval.paths import PACKAGE

_FOLDER = PACKAGE / "analysis" / "report" / "template"
_INTERVAL_WIDTH = 130
# The fields of an artifact that the script draws; the others are written into the page.
_FOR_SCRIPT = ("label", "layers", "heads", "arrays", "interval")


def render(report: Mapping[str, Any]) -> str:
    """The page.

    Args:
        report: As `report.collect.collect` returns it.
    """
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # NaN is not JSON: a browser would not parse the block.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {
        "figure": figure_cell,
        "points": format_points,
        "change": change_cell,
        "p_value": format_p_value,
        "pretty": format_value,
    }
    report = visible_values(report)
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    data = {
        "artifacts": [{name: one[name] for name in _FOR_SCRIPT} for one in report["artifacts"]],
        "samples": report["samples"],
    }
    return environment.get_template("page.html").render(
        report=report,
        data=data,
        style=(_FOLDER / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        names=METRIC_TITLES,
        interval_width=_INTERVAL_WIDTH,
        difference_axis=difference_axis,
        sweep_chart=sweep_chart,
    )


def figure_cell(cell: Mapping[str, Any] | None, metric: str) -> str:
    """A leaderboard's cell: `86.9`, `86.1 ± 0.2` for several runs, `-` for none; see `format_figure`."""
    if cell is None or cell["mean"] is None:
        return "-"
    return format_figure(metric, cell["mean"], cell["sd"])


def change_cell(difference: Mapping[str, Any], metric: str) -> str:
    """A difference with its interval: `+2.5 [+0.1, +4.9]`, `-` for none; see `format_change`."""
    numbers = [difference[name] for name in ("value", "low", "high")]
    if None in numbers:
        return "-"
    value, low, high = (format_change(metric, number) for number in numbers)
    return f"{value} [{low}, {high}]"


def format_value(value: Any) -> str:
    """Metadata as indented JSON, for display."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
