"""The tables of "Numerics" in docs/reliability.md, from docs/numerics.json, and the bounds in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.numerics.settings import DTYPES, SETTINGS, TWO_PROCESSES

ROOT = Path(__file__).resolve().parents[2]
PAGE, OUTPUT = ROOT / "docs" / "reliability.md", ROOT / "docs" / "numerics.json"
BEGIN, END = "<!-- tables: uv run python -m scripts.numerics --page -->", "<!-- end of tables -->"
AGAINST_FLOAT32 = "engine=off, batch_size=1, against float32"
COLUMNS = {
    "log_likelihood": "log-likelihood, nats",
    "activation": "activation",
    "texts": "texts",
    "poll_log_likelihood": "child: log-likelihood, nats",
    "poll_texts": "child: texts",
}
# What no row may exceed, by dtype and column; of texts, the share that may differ.
BOUNDS: dict[str, dict[str, float]] = {
    "float32": dict(zip(COLUMNS, (1e-4, 1e-5, 0, 1e-4, 0), strict=True)),
    "bfloat16": dict(zip(COLUMNS, (1.0, 0.1, 0.5, 1.0, 0.5), strict=True)),
}
_COUNTED = {"texts": "texts", "poll_texts": "polls"}


def write(page: Path = PAGE, file: Path = OUTPUT) -> None:
    """Replace the page's tables by those of the file."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    record = json.loads(file.read_text(encoding="utf-8"))
    page.write_text(f"{before}{BEGIN}\n{tables(record)}\n{END}{after}", encoding="utf-8")


def tables(record: Mapping[str, Any]) -> str:
    """A table of figures for each dtype, the bounds among them, and where they come from."""
    header = f"| | {' | '.join(COLUMNS.values())} |\n|{' --- |' * (len(COLUMNS) + 1)}"
    parts = []
    for dtype in DTYPES:
        of_dtype = [row for row in record["rows"] if row["dtype"] == dtype]
        rows = [row for row in of_dtype if row["setting"] != AGAINST_FLOAT32]
        lines = [*(_line(f"`{row['setting']}`", row) for row in rows), _bounds(BOUNDS[dtype])]
        lines += [_line("bfloat16 against float32", row) for row in of_dtype if row not in rows]
        parts.append("\n".join([f"**{dtype}**\n", header, *lines]))
    size, versions = record["size"], ", ".join(f"{k} {v}" for k, v in record["versions"].items())
    parts.append(
        f"{size['documents']} documents with two choices each, {2 * size['probed']} sequences probed, "
        f"{size['texts']} texts, {size['polls']} questions about scenes. {record['machine']}; {versions}; "
        f"{record['cpu_minutes']} minutes."
    )
    found = {(row["dtype"], row["setting"]) for row in record["rows"]}
    expected = [(dtype, str(one)) for dtype in DTYPES for one in (*SETTINGS, TWO_PROCESSES)]
    left_out = [f"`{setting}` in {dtype}" for dtype, setting in expected if (dtype, setting) not in found]
    return "\n\n".join([*parts, *([f"Not measured: {'; '.join(left_out)}."] if left_out else [])])


def exceeded(row: Mapping[str, Any], size: Mapping[str, int]) -> list[str]:
    """The columns in which a row exceeds its dtype's bound, or is no number.

    Args:
        row: A dtype, and the figures of `differences`.
        size: Those of `Size`.
    """
    bounds = BOUNDS[row["dtype"]]
    return [name for name in COLUMNS if not row[name] <= bounds[name] * size.get(_COUNTED.get(name, ""), 1)]


def _line(label: str, values: Mapping[str, Any]) -> str:
    return f"| {label} | {' | '.join(_number(values[name]) for name in COLUMNS)} |"


def _bounds(values: Mapping[str, float]) -> str:
    shown = {n: f"{v:.0%} of them" if n in _COUNTED and v else _number(v) for n, v in values.items()}
    return f"| **bound** | {' | '.join(shown[name] for name in COLUMNS)} |"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else "0" if value == 0 else f"{value:.1e}"
