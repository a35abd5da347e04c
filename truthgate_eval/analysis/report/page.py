"""A report as one HTML page that needs nothing but itself: no network, no other file.

All text goes through jinja2's escaping or into a JSON block that the page's script reads; a content security
policy lets no script run but that one, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from truthgate_eval.analysis.leaderboard.formats import NAMES
from truthgate_eval.analysis.report.charts import difference_axis, sweep_chart
from truthgate_eval.paths import PACKAGE

_FOLDER = PACKAGE / "analysis" / "report" / "template"
_INTERVAL_WIDTH = 130
# What the script draws itself; the rest is written into the page.
_FOR_SCRIPT = ("label", "layers", "heads", "arrays", "interval")


def render(report: Mapping[str, Any]) -> str:
    """The page.

    Args:
        report: As `report.collect` gives it.
    """
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # NaN is no JSON: a browser would refuse the whole block.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {"percent": percent, "points": points, "p_value": p_value, "pretty": format_value}
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
        names=NAMES,
        interval_width=_INTERVAL_WIDTH,
        difference_axis=difference_axis,
        sweep_chart=sweep_chart,
    )


def percent(cell: Mapping[str, Any] | None) -> str:
    """A leaderboard's cell: `86.9`, or `86.1 ± 0.2` for several runs."""
    if cell is None:
        return "-"
    spread = "" if cell["sd"] is None else f" ± {100 * cell['sd']:.1f}"
    return f"{100 * cell['mean']:.1f}{spread}"


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * share:+.1f}" if round(100 * share, 1) else "0.0"


def p_value(value: float) -> str:
    """A p-value to as many digits as it has to say."""
    return "<0.0001" if value < 0.0001 else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"


def format_value(value: Any) -> str:
    """Metadata as indented JSON, for reading."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
