"""The table in docs/performance.md, written from the results."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- table: python -m benchmarks table -->", "<!-- end of table -->"


def write() -> Path:
    """Replace the page's table; what stands around it is kept."""
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    results = [
        json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json")) if ".quick" not in path.name
    ]
    PAGE.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}")
    return PAGE


def table(results: list[dict[str, Any]]) -> str:
    """One line a result: medians of CPU seconds, the ratio with its spread, memory, the check."""
    lines = [
        "| job | peer | CPU s | ours, CPU s | ratio (spread, rounds) | peak MiB, peer / ours | check |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        peer, ours, ratios = result["peer"], result["ours"], result["ratio"]["rounds"]
        check = ", ".join(
            f"{key} {_number(value)}" for key, value in result["check"].items() if key != "passed"
        )
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)}"
        cells = (
            f"{result['name']}: {result['work']}",
            peer["name"],
            f"{statistics.median(peer['cpu']):.2f}",
            f"{statistics.median(ours['cpu']):.2f}",
            f"**{result['ratio']['median']:.2f}x** ({spread})",
            f"{_number(peer['peak_mib'])} / {_number(ours['peak_mib'])}",
            check,
        )
        lines.append(f"| {' | '.join(cells)} |")
    machines = {
        f"{m['processor']}, {m['threads']} pinned thread, {m['dtype']}, torch {m['torch']}, "
        f"transformers {m['transformers']}, load average {m['load_at_end']}"
        for m in (result["machine"] for result in results)
    }
    return "\n".join([*lines, "", *(f"Machine: {text}." for text in sorted(machines))])


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value >= 10 else f"{value:.1e}"
