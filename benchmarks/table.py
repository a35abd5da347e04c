"""Writes the tables of docs/performance.md from `benchmarks/results/`."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- table: python -m benchmarks table -->", "<!-- end of table -->"


def write() -> Path:
    """Replace the page's tables; the text around them is kept."""
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    results = [
        json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json")) if ".quick" not in path.name
    ]
    PAGE.write_text(f"{before}{BEGIN}\n{tables(results)}\n{END}{after}")
    return PAGE


def tables(results: list[dict[str, Any]]) -> str:
    """The comparisons, the results by number of documents, the timed commands, and the machines."""
    comparisons = [result for result in results if "baseline" in result]
    grown = [result for result in results if "points" in result]
    timed = [result for result in results if "minutes" in result]
    parts = [table(comparisons), *([growth(grown)] if grown else []), *([commands(timed)] if timed else [])]
    return "\n\n".join([*parts, machines(results)])


def table(results: list[dict[str, Any]]) -> str:
    """One line a result: medians of seconds, the ratio with its spread, memory, the check."""
    lines = [
        "| job | baseline | s | ours, s | ratio (spread, rounds) | peak MiB, baseline / ours | check |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        baseline, ours, ratios = result["baseline"], result["ours"], result["ratio"]["rounds"]
        clock = "cpu" if result.get("device", "cpu") == "cpu" else "wall"
        check = ", ".join(
            f"{key} {_number(value)}" for key, value in result["check"].items() if key != "passed"
        )
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)}"
        cells = (
            f"{result['name']}: {result['work']}",
            baseline["name"],
            f"{statistics.median(baseline[clock]):.2f}",
            f"{statistics.median(ours[clock]):.2f}",
            f"**{result['ratio']['median']:.2f}x** ({spread})",
            f"{_memory(baseline['peak_mib'])} / {_memory(ours['peak_mib'])}",
            check,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def growth(results: list[dict[str, Any]]) -> str:
    """One line a number of documents: seconds of each step and memory."""
    lines = [
        "| job | documents | tokens run | tokens, s | plan, s | activations, s | probes, s | peak MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        for point in result["points"]:
            steps = (point["tokens"], point["plan"], point["activations"], point["probes"])
            cells = (
                f"{result['name']}: {result['work']}",
                f"{point['documents']:,}",
                f"{point['tokens_planned']:,}",
                *(f"{seconds:.2f}" for seconds in steps),
                _memory(point["peak_mib"]),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def commands(results: list[dict[str, Any]]) -> str:
    """One line a command that was timed alone, on all cores."""
    lines = ["| command | cores | gates | minutes |", "| --- | --- | --- | --- |"]
    lines += [
        f"| `{result['command']}` | {result['cores']} | {result['gates']} | {result['minutes']:.1f} |"
        for result in results
    ]
    return "\n".join(lines)


def machines(results: list[dict[str, Any]]) -> str:
    """Each machine once, and how busy it was."""
    loads = [result["machine"]["load_at_end"] for result in results]
    found = sorted(
        f"{m.get('gpu') or m['processor'] + ', 1 pinned thread'}, {m['dtype']}, torch {m['torch']}, "
        f"transformers {m['transformers']}"
        for m in (result["machine"] for result in results)
    )
    busy = f"Load average at the end of each run: {min(loads)} to {max(loads)}." if loads else ""
    return "\n".join([*(f"Machine: {text}." for text in dict.fromkeys(found)), busy])


def _memory(mib: float | None) -> str:
    return "" if mib is None else f"{mib:,.0f}"


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1 else f"{value:.1e}"
