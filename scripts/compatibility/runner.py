"""One environment of the version matrix: made by uv, tested, and deleted by its caller."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("lm-eval", "lmms-eval", "torch", "transformers")
NEWEST = "newest"
# What tests/unit/gating/test_every_tiny_class.py says of a class that the installed transformers lacks.
_MISSING = re.compile(r"not in transformers \S+: (\w+)")
# Characters of a failed command's output that the JSON file keeps.
_OUTPUT_KEPT = 4_000


@dataclass
class Result:
    """What happened to a combination.

    Attributes:
        name: Of the combination.
        python: Version asked for.
        pins: As in `Combination`.
        status: passed, failed, not installable, timed out; resolved where versions were chosen only.
        versions: Those that were installed, of `PACKAGES`; where they were chosen only, those.
        seconds: Install and tests.
        passed: Number of tests that passed.
        skipped: Number of tests that were skipped, those of missing classes among them.
        missing: Classes of tiny models that this transformers does not have.
        same_as: The combination that had the same versions, and whose tests stand for this one's.
        output: The end of what the failed command printed.
    """

    name: str
    python: str
    pins: dict[str, str]
    status: str
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    passed: int = 0
    skipped: int = 0
    missing: list[str] = field(default_factory=list)
    same_as: str = ""
    output: str = ""


class CommandFailed(Exception):
    """A command ended with a status other than 0, or ran past its time.

    Attributes:
        status: What the result says then.
        output: The end of what it printed.
    """

    def __init__(self, status: str, output: str) -> None:
        super().__init__(status)
        self.status, self.output = status, output[-_OUTPUT_KEPT:]


def measure(result: Result, action: Callable[[Result], None]) -> Result:
    """Run an action that fills in a result; a failed command becomes its status."""
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
        environment, report = self.folder / "env", self.folder / "report.xml"
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
        command = (python, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not real", f"--junitxml={report}")
        try:
            self._run("failed", *command, *tests)
            result.status = "passed"
        finally:
            if report.is_file():
                count_tests(report.read_text(encoding="utf-8"), result)

    def _constraints(self, result: Result) -> Path:
        path = self.folder / "constraints.txt"
        lines = [f"{name}=={pin}\n" for name, pin in result.pins.items() if pin != NEWEST]
        path.write_text("".join(lines), encoding="utf-8")
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
        # The tests' own data sets are small; the user's prepared ones must not take part.
        environment |= {"TRUTHGATE_DATA": str(self.folder / "data")}
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
            raise CommandFailed("timed out", self._without_paths(text)) from error
        if done.returncode:
            raise CommandFailed(status, self._without_paths(done.stdout + done.stderr))
        return done.stdout

    def _without_paths(self, text: str) -> str:
        """What a command printed, without this machine's folders and the package index's address."""
        for path, name in ((self.folder, "FOLDER"), (ROOT, "."), (Path.home(), "~")):
            text = text.replace(str(path), name)
        return re.sub(r"https?://[^\s`'\")]+", "ADDRESS", text)


def count_tests(report: str, result: Result) -> None:
    """Read into a result, from a JUnit report, what passed and was skipped, and which classes are missing."""
    cases = list(ElementTree.fromstring(report).iter("testcase"))
    skipped = [one.get("message", "") for case in cases for one in case.iter("skipped")]
    broken = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
    result.skipped, result.passed = len(skipped), len(cases) - len(skipped) - broken
    found = (_MISSING.search(message) for message in skipped)
    result.missing = sorted({match[1] for match in found if match})


def _normalise(name: str) -> str:
    """A package's name as `PACKAGES` spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _of_packages(versions: Mapping[str, str]) -> dict[str, str]:
    known = {_normalise(name): version for name, version in versions.items()}
    return {name: known[name] for name in PACKAGES if name in known}
