"""What the version matrix has found so far, in docs/compatibility.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scripts.compatibility.runner import PACKAGES, Result

# The combinations that are run without --all.
NAMES = ("oldest", "newest", "oldest-python", *(f"oldest-{name}" for name in PACKAGES))
_TESTED = ("passed", "failed", "timed out")


def read_results(file: Path) -> list[Result]:
    """The results in a file; none where there is no file."""
    if not file.is_file():
        return []
    return [Result(**one) for one in json.loads(file.read_text(encoding="utf-8"))["results"]]


def write_results(file: Path, circumstances: dict[str, Any], results: Sequence[Result]) -> None:
    """Write a file that `read_results` reads.

    Args:
        file: Where to.
        circumstances: What else it has, such as the tests that were run.
        results: All of them.
    """
    record = {**circumstances, "results": [asdict(one) for one in results]}
    file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def with_result(results: Sequence[Result], new: Result) -> list[Result]:
    """The results with a new one, which replaces that of its name and Python.

    Versions that were only chosen do not replace those that were tested.
    """
    old = [one for one in results if (one.name, one.python) == (new.name, new.python)]
    if new.status == "resolved" and any(one.status in _TESTED for one in old):
        return list(results)
    return [new if one in old else one for one in results] + ([] if old else [new])


def same_versions(results: Sequence[Result], chosen: Result) -> Result | None:
    """A result of other tests in the same versions, which running them again would repeat."""
    for one in results:
        is_run = one.status in _TESTED and not one.same_as and one.name != chosen.name
        if is_run and (one.python, one.versions) == (chosen.python, chosen.versions):
            return one
    return None
