"""The tables of docs/compatibility.md, from docs/compatibility.json; the text around them is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.compatibility.record import NAMES, read_results
from scripts.compatibility.runner import PACKAGES, ROOT, Result

PAGE, RECORD = ROOT / "docs" / "compatibility.md", ROOT / "docs" / "compatibility.json"
BEGIN = "<!-- tables: uv run --no-project scripts/version_matrix.py --page -->"
END = "<!-- end of tables -->"
_NAMES = {"python": "Python", **{name: name for name in PACKAGES}}


def write(page: Path = PAGE, file: Path = RECORD) -> None:
    """Replace the page's tables by those of the file."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{tables(file)}\n{END}{after}", encoding="utf-8")


def tables(file: Path = RECORD) -> str:
    """The page's tables: the versions that are promised, each combination, and what was not run."""
    circumstances: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    results = read_results(file)
    parts = [promised(circumstances["bounds"], results), combinations(results), *missing(results)]
    if any(one.status != "resolved" for one in results):
        parts.append(
            f"Run on {circumstances['system']} with truthgate_eval {circumstances['version']}, "
            f"last on {circumstances['date']}: "
            f"{', '.join(f'`{test}`' for test in circumstances['tests'])}."
        )
    return "\n\n".join([*parts, *not_run(circumstances, results)])


def promised(bounds: Mapping[str, str], results: Sequence[Result]) -> str:
    """For each package, what pyproject.toml asks for, and the oldest and newest version that has passed."""
    lines = ["| | `pyproject.toml` | oldest that passed | newest that passed |", "| --- | --- | --- | --- |"]
    passed = [one for one in results if one.status == "passed"]
    for name, shown in _NAMES.items():
        found = sorted({one.versions.get(name, one.python) for one in passed}, key=_numbers)
        cells = (shown, f"`{bounds[name]}`", *((found[0], found[-1]) if found else ("none", "none")))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def combinations(results: Sequence[Result]) -> str:
    """One line a combination."""
    header = ("combination", *_NAMES.values(), "result", "passed", "skipped", "minutes")
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    for one in results:
        shown = {"resolved": "versions chosen, not run"}.get(one.status, one.status)
        tested = not one.same_as and one.passed + one.skipped > 0
        counts = (str(one.passed), str(one.skipped), f"{one.seconds / 60:.0f}") if tested else ("", "", "")
        cells = (
            one.name, one.python, *(one.versions.get(name, "") for name in PACKAGES),
            f"as {one.same_as}" if one.same_as else shown, *counts,
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def missing(results: Sequence[Result]) -> list[str]:
    """The classes that a version does not have; nothing where all have all."""
    versions = {one.versions["transformers"]: one.missing for one in results if one.missing}
    return [
        f"Not in transformers {version}: {', '.join(f'`{name}`' for name in names)}."
        for version, names in versions.items()
    ]


def not_run(circumstances: Mapping[str, Any], results: Sequence[Result]) -> list[str]:
    """What the results leave open."""
    left = [f"`{one.name}` on Python {one.python}" for one in results if one.status == "resolved"]
    left += [f"`{name}`" for name in NAMES if name not in {one.name for one in results}]
    newest = circumstances["newest_python"]
    if newest not in {one.python for one in results}:
        left.append(f"Python {newest}, the newest that uv knows")
    return [f"Not run: {'; '.join(left)}."] if left else []


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
