"""The tables of docs/results.md, made from docs/results.json alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from results_plan import FLOORS, GATES, PROBED, READINGS, SITES

from truthgate_eval.analysis.formatting import (
    format_interval,
    format_p_value,
    format_percent,
    format_points,
)
from truthgate_eval.metrics.pope import SPLITS

Json = dict[str, Any]
BEGIN, END = "<!-- studies/make_results.py writes {} from here -->\n", "<!-- to here -->\n"
_CONDITIONS = {"document": "own image", "black": "black image", "none": "no image"}
_TASKS = {"halueval": "HaluEval-QA, text", "text": "scenes, caption as text"}


def fill(page: str, results: Json) -> str:
    """The page with its generated sections replaced."""
    for name, make in SECTIONS.items():
        before, rest = page.split(BEGIN.format(name))
        page = before + BEGIN.format(name) + "\n" + make(results) + "\n" + END + rest.split(END, 1)[1]
    return page


def about(results: Json) -> str:
    """What was run, on which machine, and how long it took."""
    sizes, versions, polls = results["sizes"], results["versions"], results["polls"]
    seconds = sum(step["seconds"] for step in results["steps"])
    packages = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "transformers", "lm_eval", "lmms_eval")
    )
    apart, size = results["permutation"]["logits_apart"], results["permutation"]["logits_size"]
    return (
        f"{len(results['steps'])} steps took {seconds / 60:.0f} minutes of one thread each "
        f"({results['machine']}; {packages}; bfloat16). Probed: {sizes['documents']} documents of a task, two answers "
        f"each, twice (halves a and b share no document). Gates were chosen on the first {sizes['selection']} polls of "
        f"each split's held-out fifth and evaluated on {sizes['rest']} others of each split, {polls['child']['distinct']} "
        f"distinct polls; the earlier checkpoint on {sizes['early_rest']}, {polls['early']['distinct']} distinct. The permuted child's logits are the child's up to "
        f"{apart:.1g} of {size:.0f}.\n"
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
    lines = []
    for name, sites in results["probed"].items():
        model, task = {**PROBED, **FLOORS}[name]
        what = _TASKS.get(task) or f"scenes, {_CONDITIONS[task]}"
        cells = [f"{sites[site][key]:.3f}" for site in SITES for key in ("mean", "best", "within_layers")]
        lines.append([f"{model}: {what}", *cells])
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
    means = [
        f"{results['probed'][f'child-{name}']['post']['mean']:.3f}" for name in ("picture", "black", "none")
    ]
    columns = ["scores", "site", "their mean", "control", "its mean", "heads above it", "r within layers"]
    return _table(columns, lines) + (
        f"\nMean score of the child on scenes (post): {means[0]} with the image, {means[1]} with a black one, "
        f"{means[2]} with none.\n"
    )


def gating(results: Json) -> str:
    """The evaluated runs of the child."""
    return _runs(results, "child")


def early(results: Json) -> str:
    """The evaluated runs of the earlier checkpoint."""
    return _runs(results, "early")


def axis(results: Json) -> str:
    """Accuracy over lam on the selection split, with the random gates."""
    sections = []
    for checkpoint, found in results["axis"].items():
        some = next(iter(found.values()))["points"]
        lams = sorted({point["lam"] for point in some})
        head = ["scores, reading, norm", *(f"{lam:g}" for lam in lams)]
        lines = []
        for name, own in found.items():
            vanilla = next(point for point in own["points"] if point["lam"] == 0)
            for norm in dict.fromkeys(point["norm"] for point in own["points"] if point["lam"] != 0):
                by_lam = {0.0: vanilla} | {
                    p["lam"]: p for p in own["points"] if p["norm"] == norm and p["lam"] != 0
                }
                lines.append([f"{name}, {norm}", *(format_percent(by_lam[lam]["value"]) for lam in lams)])
        n = some[0]["documents"]
        errors = [
            point["stderr"]
            for own in found.values()
            for point in own["points"]
            if point["stderr"] is not None
        ]
        about = f"n = {n} polls" + (
            f", standard errors up to {format_percent(max(errors))}" if errors else ""
        )
        sections.append(f"**{_name_of(checkpoint)}**, accuracy in percent, {about}.\n\n{_table(head, lines)}")
    for site, values in results["random"].items():
        if values:
            sections.append(
                f"Random gates on the same polls, {site}: {', '.join(format_percent(value) for value in values)}.\n"
            )
    return "\n".join(sections)


def commands(results: Json) -> str:
    """Every command with its time."""
    lines = [f"{step['seconds']:6.0f} s  $ {step['command']}" for step in results["steps"]]
    return "```text\n" + "\n".join(lines) + "\n```\n"


def _runs(results: Json, checkpoint: str) -> str:
    runs = results["gating"][checkpoint]["runs"]
    head = [
        "run",
        "lam, norm, site",
        *(f"{metric}, {split}" for split in SPLITS for metric in ("acc", "F1", "yes")),
    ]
    blind = [
        cell
        for split in SPLITS
        for cell in (format_percent(results["polls"][checkpoint]["splits"][split]["blind"]), "", "")
    ]
    lines = [["blind guess", "", *blind]]
    for name, run in runs.items():
        cells = [run["cells"][split] for split in SPLITS]
        lines.append(
            [_label(name), _gate(run["gate"])]
            + [format_percent(cell[metric]) for cell in cells for metric in ("acc", "f1", "yes_ratio")]
        )
    polls = ", ".join(f"{results['polls'][checkpoint]['splits'][split]['polls']} {split}" for split in SPLITS)
    text = f"Percent; polls: {polls}, {results['polls'][checkpoint]['distinct']} of them distinct.\n\n{_table(head, lines)}"
    return text + "\n" + _against(runs)


def _against(runs: Json) -> str:
    """The differences of the mean over the splits, against vanilla."""
    head = ["run", "gained", "lost", "accuracy", "F1", "p", "corrected p", "verdict"]
    lines = []
    for name, run in runs.items():
        one = run["against_vanilla"].get("mean")
        if one is None:
            continue
        differences = [_difference(one["differences"][metric]) for metric in ("acc", "f1")]
        ps = [format_p_value(one[key]) for key in ("p", "p_corrected")]
        counts = [str(one["only_run"]), str(one["only_baseline"])]
        lines.append([_label(name), *counts, *differences, *ps, one["verdict"]])
    return (
        "Against vanilla, mean over the splits, in points with the 95 % interval of a bootstrap that draws whole "
        "images; p of McNemar's exact test on distinct polls, corrected (Holm) over all runs and splits.\n\n"
        + _table(head, lines)
    )


def _label(name: str) -> str:
    """The name of an evaluated run in words."""
    for gate, (_, paper) in GATES.items():
        reading = name.removeprefix(f"{gate}-")
        if reading in READINGS:
            return f"{paper}; {reading.replace('-', ', ')}: {READINGS[reading]}"
        if reading == "best" and name.startswith(gate):
            return f"{paper}; best reading"
    return name.replace("shuffled-", "scores shuffled within layers, ")


def _gate(gate: Json) -> str:
    if gate.get("lam") is None:
        return ""
    return f"{gate['lam']:g}, {gate['norm']}, {gate['site']}"


def _name_of(checkpoint: str) -> str:
    return {"child": "The child", "early": "The earlier checkpoint"}[checkpoint]


def _coefficient(found: Json, ceiling: float | None) -> str:
    interval = "" if found["low"] is None else f" ({format_interval(found['low'], found['high'], digits=2)})"
    return f"{found['r']:.2f}{interval}" + (f" of {ceiling:.2f}" if ceiling is not None else "")


def _difference(found: Json) -> str:
    low, high = (format_points(found[end], digits=2) for end in ("low", "high"))
    return f"{format_points(found['value'], digits=2)} ({low} to {high})"


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
    "gating": gating,
    "axis": axis,
    "early": early,
    "controls": controls,
    "commands": commands,
}
