#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["packaging>=24"]
# ///
"""Test the oldest and the newest versions that pyproject.toml promises.

The matrix is over lm-eval, lmms-eval, torch, transformers and Python. The oldest version of a package
is the lower bound in pyproject.toml; the newest is whatever the package index offers below the upper
bound. For each combination the script makes a uv environment in a temporary folder, installs this
checkout with those versions pinned, runs a short list of tests, and deletes the environment. It prints a
table and, with --output, writes a JSON file with the installed versions and the end of the output of
whatever failed. Results that the file has of other combinations are kept. The tests load every task of
both harnesses and gate every class of the tests' tiny models.

Without --all there are seven combinations: everything at its oldest, everything at its newest, the newest
packages on the oldest Python, and each package alone at its oldest (on the oldest Python, since old
releases have no wheels for a new one). --all tests all 32. One that gets the versions of another, as where
a package has had a single release, is not run again.

A combination that cannot be installed counts as failed: pyproject.toml should not promise it. The exit
status is 0 if every combination passed, 1 if one failed, 2 for a usage error.

Every environment holds torch, so a full run downloads several gigabytes. --list prints the combinations
and --dry-run resolves their versions; neither installs anything. --page writes docs/compatibility.md from
docs/compatibility.json and stops.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import itertools
import json
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

sys.path.append(str(Path(__file__).resolve().parents[1]))
from scripts.compatibility import page, record
from scripts.compatibility.runner import NEWEST, PACKAGES, ROOT, Result, Runner, measure

TESTS = (
    "tests/unit/gating",
    "tests/integration/autoload",
    "tests/integration/lm_eval/test_tasks.py",
    "tests/integration/lmms_eval/test_every_task.py",
)
# What the tests need beside the package; their bounds are those of the dependency groups.
TEST_PACKAGES = ("pytest", "pytest-xdist", "hypothesis", "tokenizers", "num2words", "easy-vqa")


@dataclass(frozen=True)
class Combination:
    """One environment to test.

    Attributes:
        name: Its name for --only.
        python: Such as 3.10.
        pins: Each of `PACKAGES` with its version, or `NEWEST`.
    """

    name: str
    python: str
    pins: dict[str, str]


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "tests", nargs="*", default=list(TESTS), help=f"what pytest runs (default: {' '.join(TESTS)})"
    )
    parser.add_argument("--list", action="store_true", help="print the combinations and stop")
    parser.add_argument("--dry-run", action="store_true", help="resolve the versions only; install nothing")
    parser.add_argument("--all", action="store_true", help="all 32 combinations")
    parser.add_argument("--only", action="append", metavar="NAME", help="only this one; may be repeated")
    parser.add_argument(
        "--newest-python", metavar="X.Y", help="default: the newest stable CPython that uv knows"
    )
    parser.add_argument(
        "--torch-backend", metavar="NAME", help="passed to uv, such as cpu (a small download)"
    )
    parser.add_argument(
        "--timeout", type=int, default=1800, metavar="SECONDS", help="per command (default 1800)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--page", action="store_true", help="write docs/compatibility.md and stop")
    arguments = parser.parse_args()
    if arguments.page:
        page.write()
        return 0

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    oldest_python = lower_bound(SpecifierSet(project["project"]["requires-python"]), "requires-python")
    newest_python = arguments.newest_python or newest_stable_python()
    found = make_combinations(
        oldest_versions(project["project"]["dependencies"]),
        oldest_python,
        newest_python,
        everything=arguments.all,
    )
    if arguments.only:
        unknown = sorted(set(arguments.only) - {one.name for one in found})
        if unknown:
            parser.error(f"no combination {', '.join(unknown)}; --list prints them")
        found = [one for one in found if one.name in arguments.only]
    if arguments.list:
        rows = [[one.name, one.python, *(one.pins[name] for name in PACKAGES)] for one in found]
        print(format_table(["combination", "Python", *PACKAGES], rows))
        return 0
    results = run(found, arguments, test_requirements(project["dependency-groups"]))
    rows = [
        [result.name, result.python, *(result.versions.get(name, "-") for name in PACKAGES), result.status]
        for result in results
    ]
    print(format_table(["combination", "Python", *PACKAGES, "result"], rows))
    return 0 if all(result.status in ("passed", "resolved") for result in results) else 1


def run(
    combinations: Sequence[Combination], arguments: argparse.Namespace, requirements: Sequence[str]
) -> list[Result]:
    """Test the combinations, or choose their versions in a dry run, and write each result."""
    backend = ["--torch-backend", arguments.torch_backend] if arguments.torch_backend else []
    known = record.read_results(arguments.output) if arguments.output else []
    results = []
    for number, one in enumerate(combinations, 1):
        label = f"[{number}/{len(combinations)}] {one.name} on Python {one.python}"
        print(label, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="version_matrix.") as folder:
            runner = Runner(Path(folder), backend, arguments.timeout)
            result = measure(Result(one.name, one.python, one.pins, "failed"), runner.resolve)
            same = record.same_versions(known, result)
            if same is not None:
                result = replace(same, name=one.name, pins=one.pins, seconds=0.0, same_as=same.name)
            elif result.status == "resolved" and not arguments.dry_run:
                test = functools.partial(
                    runner.install_and_test, requirements=requirements, tests=arguments.tests
                )
                result = measure(Result(one.name, one.python, one.pins, "failed"), test)
        print(f"  {result.status} after {result.seconds:.0f} s", file=sys.stderr, flush=True)
        results.append(result)
        known = record.with_result(known, result)
        # Written after each combination: an interrupted run keeps what it has found.
        if arguments.output:
            record.write_results(arguments.output, circumstances(arguments.tests), known)
    return results


def circumstances(tests: Sequence[str]) -> dict[str, object]:
    """What a file of results says beside them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = map(Requirement, project["dependencies"])
    bounds = {_normalise(one.name): str(one.specifier) for one in requirements}
    return {
        "version": project["version"],
        "date": datetime.date.today().isoformat(),
        "system": f"{platform.system()} {platform.machine()}",
        "bounds": {"python": project["requires-python"], **{name: bounds[name] for name in PACKAGES}},
        "newest_python": newest_stable_python(),
        "tests": list(tests),
    }


def lower_bound(specifiers: SpecifierSet, name: str) -> str:
    """The version behind `>=`."""
    bounds = [one.version for one in specifiers if one.operator == ">="]
    if len(bounds) != 1:
        sys.exit(f"pyproject.toml: expected one lower bound (>=) of {name}, found {str(specifiers)!r}")
    return bounds[0]


def oldest_versions(dependencies: Sequence[str]) -> dict[str, str]:
    """The lower bound of each of `PACKAGES` in the project's dependencies."""
    requirements = {_normalise(one.name): one for one in map(Requirement, dependencies)}
    missing = [name for name in PACKAGES if name not in requirements]
    if missing:
        sys.exit(f"pyproject.toml: {', '.join(missing)} not among the dependencies")
    return {name: lower_bound(requirements[name].specifier, name) for name in PACKAGES}


def test_requirements(groups: dict[str, Sequence[object]]) -> list[str]:
    """The entries of the groups dev and assets for `TEST_PACKAGES`."""
    entries = [one for name in ("dev", "assets") for one in groups[name] if isinstance(one, str)]
    found = {_normalise(Requirement(one).name): one for one in entries}
    return [found[name] for name in TEST_PACKAGES]


def newest_stable_python() -> str:
    """The newest CPython release, without alphas and betas, that this uv can install."""
    done = subprocess.run(
        ["uv", "python", "list", "--only-downloads", "--output-format", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    versions = [
        tuple(map(int, one["version"].split(".")))[:2]
        for one in json.loads(done.stdout)
        if one["implementation"] == "cpython" and re.fullmatch(r"\d+\.\d+\.\d+", one["version"])
    ]
    if not versions:
        sys.exit("uv lists no Python that it can download: give --newest-python")
    return ".".join(map(str, max(versions)))


def make_combinations(
    oldest: dict[str, str], oldest_python: str, newest_python: str, *, everything: bool
) -> list[Combination]:
    """The combinations in the order in which they are tested.

    Args:
        oldest: The lower bound of each of `PACKAGES`.
        oldest_python: The lower bound of Python.
        newest_python: Newest version of Python.
        everything: The whole product instead of the seven that the module's docstring names.
    """
    newest = dict.fromkeys(PACKAGES, NEWEST)
    if not everything:
        return [
            Combination("oldest", oldest_python, oldest),
            Combination("newest", newest_python, newest),
            Combination("oldest-python", oldest_python, newest),
            *(
                Combination(f"oldest-{name}", oldest_python, newest | {name: oldest[name]})
                for name in PACKAGES
            ),
        ]
    found = []
    for python in (oldest_python, newest_python):
        for chosen in itertools.product((True, False), repeat=len(PACKAGES)):
            old = [name for name, is_old in zip(PACKAGES, chosen, strict=True) if is_old]
            label = "+".join(f"{name}-{oldest[name]}" for name in old) or NEWEST
            pins = newest | {name: oldest[name] for name in old}
            found.append(Combination(f"python-{python}+{label}", python, pins))
    return found


def _normalise(name: str) -> str:
    """A package's name as `PACKAGES` spells it."""
    return str(canonicalize_name(name))


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, each as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


if __name__ == "__main__":
    sys.exit(main())
