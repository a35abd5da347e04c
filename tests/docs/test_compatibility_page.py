"""The tables of docs/compatibility.md are those of docs/compatibility.json, and promise what pyproject.toml does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from scripts.compatibility import page
from scripts.compatibility.page import BEGIN, END, PAGE, RECORD, combinations, missing, promised
from scripts.compatibility.record import NAMES, read_results, same_versions, with_result, write_results
from scripts.compatibility.runner import PACKAGES, ROOT, CommandFailed, Result, Runner, count_tests, measure

tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
PINS = dict.fromkeys(PACKAGES, "newest")
VERSIONS = {"lm-eval": "0.4.13", "lmms-eval": "0.7.3", "torch": "2.6.0", "transformers": "5.0.0"}


def result(name: str = "oldest", status: str = "passed", python: str = "3.10", **more: object) -> Result:
    return Result(name, python, PINS, status, **{"versions": VERSIONS, **more})  # type: ignore[arg-type]


def test_the_page_has_the_tables_of_the_committed_results() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    assert text.split(BEGIN)[1].split(END)[0].strip() == page.tables()


def test_the_committed_results_are_of_the_bounds_in_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = {one.name: str(one.specifier) for one in map(Requirement, project["dependencies"])}
    bounds = json.loads(RECORD.read_text(encoding="utf-8"))["bounds"]
    assert bounds == {"python": project["requires-python"], **{name: requirements[name] for name in PACKAGES}}


def test_no_committed_combination_has_failed_or_names_this_machine() -> None:
    assert {one.status for one in read_results(RECORD)} <= {"passed", "resolved"}
    # Tests are named by their paths in the repository; an absolute path or an address is of a machine.
    assert not re.search(r"://|(?<![\w.])/\w", RECORD.read_text(encoding="utf-8"))


def test_the_exit_plan_names_tests_that_exist() -> None:
    table = PAGE.read_text(encoding="utf-8").split("## What can go, and when")[1]
    tests = "".join(
        (ROOT / "tests" / "integration" / name).read_text(encoding="utf-8")
        for name in ("autoload/test_exit_plan.py", "lm_eval/test_caches.py", "lmms_eval/test_caches.py")
    )
    named = re.findall(r"`\.\.\._(\w+?)(?:\.\.\.)?`", table)
    assert len(named) >= 9 and all(re.search(rf"def test_\w*{name}", tests) for name in named)
    patches = re.findall(r"`(\w+)`", table)
    source = "".join(path.read_text() for path in (ROOT / "truthgate_eval" / "harness").glob("*/patches.py"))
    functions = [name for name in patches if name.startswith(("install_", "include_", "register_", "keep_"))]
    assert functions and all(f"def {name}(" in source for name in functions)


def test_the_tables_have_what_passed_only() -> None:
    results = [
        result(passed=9, skipped=2, seconds=125.0, missing=["BigConfig"]),
        result("other", versions=VERSIONS | {"torch": "2.15.0"}, python="3.13", same_as="oldest"),
        result("bad", "failed", versions=VERSIONS | {"torch": "2.16.0"}, passed=3),
        result("chosen", "resolved", versions=VERSIONS | {"torch": "2.17.0"}),
    ]
    assert "| torch | `>=2.6` | 2.6.0 | 2.15.0 |" in promised({"torch": ">=2.6", **dict.fromkeys(
        ("python", "lm-eval", "lmms-eval", "transformers"), ">=1")}, results)  # fmt: skip
    _, _, *rows = combinations(results).splitlines()
    assert rows[0] == "| oldest | 3.10 | 0.4.13 | 0.7.3 | 2.6.0 | 5.0.0 | passed | 9 | 2 | 2 |"
    assert rows[1].endswith("| as oldest |  |  |  |") and rows[2].endswith("| failed | 3 | 0 | 0 |")
    assert "| versions chosen, not run |" in rows[3]
    assert missing(results) == ["Not in transformers 5.0.0: `BigConfig`."]
    for name in NAMES[1:]:
        results.append(result(name))
    newest = "Python 3.15, the newest that uv knows"
    assert page.not_run({"newest_python": "3.15"}, results) == [
        f"Not run: `chosen` on Python 3.10; {newest}."
    ]
    left = page.not_run({"newest_python": "3.10"}, results[4:-1])
    assert left == ["Not run: `oldest`; `oldest-transformers`."]
    del results[3]
    assert page.not_run({"newest_python": "3.13"}, results) == []


def test_a_missing_class_and_a_failed_test_have_not_passed() -> None:
    found = result()
    count_tests(
        '<testsuites><testsuite><testcase name="a"/>'
        '<testcase name="b"><skipped message="not in transformers 5.0.0: BigConfig"/></testcase>'
        '<testcase name="c"><skipped message="no GPU"/></testcase>'
        '<testcase name="d"><failure message="x"/></testcase></testsuite></testsuites>',
        found,
    )
    assert (found.passed, found.skipped, found.missing) == (1, 2, ["BigConfig"])


def test_results_of_other_combinations_are_kept_and_a_choice_replaces_no_test(tmp_path: Path) -> None:
    results = with_result([result(), result("newest")], result(status="failed"))
    assert [one.status for one in results] == ["failed", "passed"]
    assert with_result(results, result("newest", "resolved")) == results
    write_results(tmp_path / "a.json", {"tests": []}, results)
    assert read_results(tmp_path / "a.json") == results and read_results(tmp_path / "none.json") == []


@pytest.mark.parametrize(
    ("change", "is_same"),
    [({}, True), ({"python": "3.13"}, False), ({"versions": {}}, False), ({"same_as": "x"}, False),
     ({"status": "resolved"}, False), ({"name": "chosen"}, False)],
)  # fmt: skip
def test_equal_versions_are_tested_once(change: dict[str, object], is_same: bool) -> None:
    earlier = result(**change)  # type: ignore[arg-type]
    chosen = result("chosen", "resolved")
    assert same_versions([earlier], chosen) is (earlier if is_same else None)


def test_what_a_command_printed_is_kept_without_this_machines_folders(tmp_path: Path) -> None:
    runner = Runner(tmp_path, [], timeout=60)

    def fail(_: Result) -> None:
        runner._run(
            "failed", "sh", "-c", f"echo https://user:x@index.example/simple {tmp_path}/a {ROOT}/b; exit 1"
        )

    found = measure(result(), fail)
    assert found.status == "failed" and found.output == "ADDRESS FOLDER/a ./b\n"
    with pytest.raises(CommandFailed, match="timed out"):
        Runner(tmp_path, [], timeout=0)._run("failed", "sleep", "5")
