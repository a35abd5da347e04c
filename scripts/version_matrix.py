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
whatever failed.

Without --all there are seven combinations: everything at its oldest, everything at its newest, the newest
packages on the oldest Python, and each package alone at its oldest (on the oldest Python, since old
releases have no wheels for a new one). --all tests all 32.

A combination that cannot be installed counts as failed: pyproject.toml should not promise it. The exit
status is 0 if every combination passed, 1 if one failed, 2 for a usage error.

Every environment holds torch, so a full run downloads several gigabytes. --list prints the combinations
and --dry-run resolves their versions; neither installs anything.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("lm-eval", "lmms-eval", "torch", "transformers")
TESTS = ("tests/unit/gating", "tests/integration/autoload")
# What the tests need beside the package; their bounds are those of the dev group.
TEST_PACKAGES = ("pytest", "pytest-xdist", "hypothesis", "tokenizers")
NEWEST = "newest"
# Characters of a failed command's output that the JSON file keeps.
_OUTPUT_KEPT = 4_000


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

    def constraints(self) -> str:
        """The pins as the lines of a constraints file."""
        return "".join(f"{name}=={pin}\n" for name, pin in self.pins.items() if pin != NEWEST)


@dataclass
class Result:
    """What happened to a combination.

    Attributes:
        name: Of the combination.
        python: Version asked for.
        pins: As in `Combination`.
        status: passed, failed, not installable, timed out; resolved in a dry run.
        versions: Those that were installed, of `PACKAGES`.
        seconds: Install and tests.
        output: The end of what the failed command printed.
    """

    name: str
    python: str
    pins: dict[str, str]
    status: str
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    output: str = ""


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
    arguments = parser.parse_args()

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

    backend = ["--torch-backend", arguments.torch_backend] if arguments.torch_backend else []
    requirements = test_requirements(project["dependency-groups"]["dev"])
    results = []
    for number, one in enumerate(found, 1):
        print(f"[{number}/{len(found)}] {one.name} on Python {one.python}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="version_matrix.") as folder:
            run = Runner(Path(folder), backend, arguments.timeout)
            test = functools.partial(run.install_and_test, requirements=requirements, tests=arguments.tests)
            results.append(measure(one, run.resolve if arguments.dry_run else test))
        print(f"  {results[-1].status} after {results[-1].seconds:.0f} s", file=sys.stderr, flush=True)
        # Written after each combination: an interrupted run keeps what it has found.
        if arguments.output:
            record = {"version": project["project"]["version"], "tests": arguments.tests}
            record["results"] = [asdict(result) for result in results]
            arguments.output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    rows = [
        [result.name, result.python, *(result.versions.get(name, "-") for name in PACKAGES), result.status]
        for result in results
    ]
    print(format_table(["combination", "Python", *PACKAGES, "result"], rows))
    return 0 if all(result.status in ("passed", "resolved") for result in results) else 1


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


def test_requirements(group: Sequence[object]) -> list[str]:
    """The entries of the dev group for `TEST_PACKAGES`."""
    entries = [one for one in group if isinstance(one, str)]
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


class CommandFailed(Exception):
    """A command ended with a status other than 0, or ran past its time.

    Attributes:
        status: What the result says then.
        output: The end of what it printed.
    """

    def __init__(self, status: str, output: str) -> None:
        super().__init__(status)
        self.status, self.output = status, output[-_OUTPUT_KEPT:]


def measure(combination: Combination, action: Callable[[Result], None]) -> Result:
    """Run an action that fills in a combination's result; a failed command becomes its status."""
    result = Result(combination.name, combination.python, combination.pins, status="failed")
    start = time.monotonic()
    try:
        action(result)
    except CommandFailed as error:
        result.status, result.output = error.status, error.output
    result.seconds = round(time.monotonic() - start, 1)
    return result


class Runner:
    """Runs the commands for one combination.

    Args:
        folder: An empty folder, for the environment and the constraints file.
        backend: More arguments of uv's commands that choose versions.
        timeout: Seconds per command.
    """

    def __init__(self, folder: Path, backend: list[str], timeout: int) -> None:
        self.folder, self.backend, self.timeout = folder, backend, timeout

    def resolve(self, result: Result) -> None:
        """Choose versions as an install would."""
        output = self.folder / "resolved.txt"
        self._run(
            "not installable",
            "uv", "pip", "compile", "pyproject.toml", "--quiet", "--no-header", "--no-annotate",
            "--python-version", result.python, "--constraint", self._constraints(result), *self.backend,
            "--output-file", output,
        )  # fmt: skip
        lines = (line.split(";")[0].strip() for line in output.read_text(encoding="utf-8").splitlines())
        pairs = (line.partition("==") for line in lines if "==" in line)
        result.versions = _of_packages({name.partition("[")[0]: version for name, _, version in pairs})
        result.status = "resolved"

    def install_and_test(self, result: Result, *, requirements: Sequence[str], tests: Sequence[str]) -> None:
        """Make the environment, install the checkout, and run the tests in it."""
        environment = self.folder / "env"
        python = environment / "bin" / "python"
        self._run("not installable", "uv", "venv", "--quiet", "--python", result.python, environment)
        # Editable: pytest puts the checkout on the path, so the tests import the checkout either way.
        self._run(
            "not installable",
            "uv", "pip", "install", "--quiet", "--python", python, "--constraint", self._constraints(result),
            *self.backend, "--editable", ".", *requirements,
        )  # fmt: skip
        listed = self._run("failed", "uv", "pip", "list", "--quiet", "--python", python, "--format", "json")
        result.versions = _of_packages({one["name"]: one["version"] for one in json.loads(listed)})
        self._run("failed", python, "-m", "pytest", "-p", "no:cacheprovider", *tests)
        result.status = "passed"

    def _constraints(self, result: Result) -> Path:
        path = self.folder / "constraints.txt"
        path.write_text(Combination(result.name, result.python, result.pins).constraints(), encoding="utf-8")
        return path

    def _run(self, status: str, *command: str | Path) -> str:
        """Run a command in the repository's root.

        Returns:
            Its standard output.

        Raises:
            CommandFailed: With this status.
        """
        # An active environment must not take part, nor may a test reach for a hub.
        environment = {
            name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")
        }
        environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        try:
            done = subprocess.run(
                list(map(str, command)),
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=self.timeout,
            )
        except subprocess.TimeoutExpired as error:
            printed = error.stdout or b""
            text = printed.decode(errors="replace") if isinstance(printed, bytes) else printed
            raise CommandFailed("timed out", text) from error
        if done.returncode:
            raise CommandFailed(status, done.stdout + done.stderr)
        return done.stdout


def _normalise(name: str) -> str:
    """A package's name as `PACKAGES` spells it."""
    return str(canonicalize_name(name))


def _of_packages(versions: dict[str, str]) -> dict[str, str]:
    known = {_normalise(name): version for name, version in versions.items()}
    return {name: known[name] for name in PACKAGES if name in known}


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
