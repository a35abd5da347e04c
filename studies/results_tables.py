"""The tables of docs/results.md, made from docs/results.json alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from results_plan import FLOORS, PROBED, SITES

from truthgate_eval.analysis.formatting import format_interval, format_percent

Json = dict[str, Any]
BEGIN, END = "<!-- studies/make_results.py writes {} from here -->\n", "<!-- to here -->\n"
_TASKS = {
    "halueval": "HaluEval-QA, text", "scenes-text": "scenes, caption as text", "scenes": "scenes",
    "scenes-black": "scenes, black image", "easy-vqa": "easy-VQA", "easy-vqa-black": "easy-VQA, black image",
}  # fmt: skip


def fill(page: str, results: Json) -> str:
    """The page with its generated sections replaced."""
    for name, make in SECTIONS.items():
        before, rest = page.split(BEGIN.format(name))
        page = before + BEGIN.format(name) + "\n" + make(results) + "\n" + END + rest.split(END, 1)[1]
    return page


def about(results: Json) -> str:
    """What was run, on which machine, and how long it took."""
    sizes, versions = results["sizes"], results["versions"]
    seconds = sum(step["seconds"] for step in results["steps"])
    packages = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "transformers", "lm_eval", "lmms_eval")
    )
    apart, size = results["permutation"]["logits_apart"], results["permutation"]["logits_size"]
    return (
        f"{len(results['steps'])} steps took {seconds / 60:.0f} minutes of one thread each "
        f"({results['machine']}; {packages}; bfloat16). Probed: {sizes['halueval']} documents of HaluEval-QA and "
        f"{sizes['polls']} polls, two answers each, twice (halves a and b share no document). The permuted child's "
        f"logits are the child's up to {apart:.1g} of {size:.0f}.\n"
    )


def inheritance(results: Json) -> str:
    """Correlations in groups, both sites side by side."""
    head = ["scores", *(f"{scope}, {site}" for site in SITES for scope in ("all heads", "within layers"))]
    lines = []
    for rows in zip(*(results["inheritance"][site] for site in SITES), strict=True):
        first = rows[0]
        cells = [
            _coefficient(row[scope], row.get("ceiling", {}).get(scope))
            for row in rows
            for scope in ("all heads", "within layers")
        ]
        lines.append((first["group"], [f"{first['first']} · {first['second']}", *cells]))
    return _grouped(head, lines) + (
        "\nPearson's r with its 95 % interval (jackknife over layers); `of` is the ceiling, what the noise of both "
        "scores leaves possible: the geometric mean of their own two coefficients.\n"
    )


def levels(results: Json) -> str:
    """The level of the scores, and how much heads differ."""
    columns = [f"{what}, {site}" for site in SITES for what in ("mean", "best", "sd in layers")]
    columns.append("model is right")
    lines = []
    for name, sites in results["probed"].items():
        model, task = {**PROBED, **FLOORS}[name]
        cells = [f"{sites[site][key]:.3f}" for site in SITES for key in ("mean", "best", "within_layers")]
        right = sites[SITES[0]]["own_accuracy"]
        lines.append([f"{model}: {_TASKS[task]}", *cells, "" if right is None else format_percent(right)])
    return _table(["model and data", *columns], lines)


def controls(results: Json) -> str:
    """The controls of each score set."""
    lines = []
    for name, sites in results["probed"].items():
        for site in SITES:
            own = sites[site]
            for control, found in own["controls"].items():
                r = "" if found["r"] is None else f"{found['r']:.2f}"
                above = f"{found['above']} of {own['heads']}"
                lines.append([name, site, f"{own['mean']:.3f}", control, f"{found['mean']:.3f}", above, r])
    columns = ["scores", "site", "their mean", "control", "its mean", "heads above it", "r within layers"]
    return _table(columns, lines)


def commands(results: Json) -> str:
    """Every command with its time."""
    lines = [f"{step['seconds']:6.0f} s  $ {step['command']}" for step in results["steps"]]
    return "```text\n" + "\n".join(lines) + "\n```\n"


def _coefficient(found: Json, ceiling: float | None) -> str:
    interval = "" if found["low"] is None else f" ({format_interval(found['low'], found['high'], digits=2)})"
    return f"{found['r']:.2f}{interval}" + (f" of {ceiling:.2f}" if ceiling is not None else "")


def _table(head: list[str], lines: Iterable[list[str]]) -> str:
    rows = [head, ["---"] + ["---:"] * (len(head) - 1), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _grouped(head: list[str], lines: list[tuple[str, list[str]]]) -> str:
    """A table whose groups each begin with a row for their name."""
    rows: list[list[str]] = []
    last = None
    for group, cells in lines:
        if group != last:
            rows.append([f"**{group}**", *[""] * (len(head) - 1)])
        rows.append(cells)
        last = group
    return _table(head, rows)


SECTIONS: dict[str, Callable[[Json], str]] = {
    "about": about,
    "inheritance": inheritance,
    "levels": levels,
    "controls": controls,
    "commands": commands,
}
