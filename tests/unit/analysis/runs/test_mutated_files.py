"""Results and samples files of both harnesses with changed values: a valid run or our own error of one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import result_files
from helpers.mutations import change_values, nest
from hypothesis import given, settings
from hypothesis import strategies as st

from truthgate_eval.analysis.runs.methods import describe_gate, method_of
from truthgate_eval.analysis.runs.run import read_run
from truthgate_eval.analysis.runs.task_groups import task_groups
from truthgate_eval.errors import DataError, TruthGateError

PARSED = ["yes", "no", None, "no"]
MAKERS = [result_files.lm_eval_run, result_files.lmms_eval_run]


def read_and_use(folder: Path) -> None:
    run = read_run(folder)
    method_of(run)
    describe_gate(run)
    task_groups(run)


@pytest.mark.parametrize("make", MAKERS)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_changed_files_end_in_a_run_or_in_our_error(
    make: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("run")
    groups = {"all": ["halueval_qa", "part"], "part": ["sums"]}
    gate = {**result_files.LLM, "layers": [1, 2]}
    make(folder, {"halueval_qa": PARSED, "sums": PARSED}, gate=gate, groups=groups)
    results_file = next(file for file in folder.rglob("*results*"))
    samples = next(file for file in sorted(folder.rglob("*samples*")))
    if data.draw(st.booleans()):
        results = json.loads(results_file.read_text())
        change_values(data.draw, results, changes=3)
        results_file.write_text(json.dumps(results))
    else:
        lines = result_files.read_lines(samples)
        change_values(data.draw, lines, changes=3)
        result_files.write_lines(samples, lines)
    try:
        read_and_use(folder)
    except TruthGateError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n-samples": 5}, "n-samples is 5, expected an object"),
        ({"n-samples": {"sums": [4]}}, r"n-samples\.sums is \[4\], expected an object"),
        (
            {"n-samples": {"sums": {"effective": "4"}}},
            r"n-samples\.sums\.effective is '4', expected a number",
        ),
        ({"versions": [1]}, r"versions is \[1\], expected an object"),
        ({"model_info": {"versions": [1]}}, r"model_info\.versions is \[1\], expected an object"),
        ({"group_subtasks": {"a": "sums"}}, r"group_subtasks\.a is 'sums', expected a list of tasks"),
        ({"group_subtasks": {"a": [["sums"]]}}, r"group_subtasks\.a is \[\['sums'\]\]"),
        ({"group_subtasks": {"a": [{}]}}, r"group_subtasks\.a is \[\{\}\]"),
        ({"group_subtasks": {"a": ["b"], "b": ["c", "a"]}}, "the group a is a member of itself"),
        ({"configs": {"a/../../b": {}}}, r"no samples file can have 'a/\.\./\.\./b' in its name"),
        ({"gate": "scores.npz"}, r"the recorded gate is 'scores\.npz', expected an object"),
        ({"gate": {"site": "post", "layers": 5}}, "layers of the recorded gate is 5"),
        ({"gate": {"site": "post", "probed": "vicuna"}}, "probed of the recorded gate is 'vicuna'"),
        ({"gate": {"site": "post", "lam": math.nan, "norm": "centered"}}, "the recorded gate has lam=nan"),
        ({"gate": {"site": "post", "lam": 10**400, "norm": "raw"}}, "the recorded gate has lam=1000"),
        ({"gate": {"site": "post", "lam": 1.0}}, "the recorded gate has lam=1.0, norm=None"),
        ({"pretty_env_info": nest(300)}, "is JSON that is nested too deeply to be read"),
    ],
)
def test_a_wrong_type_in_a_results_file_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = result_files.lm_eval_run(tmp_path, {"sums": PARSED})
    file = result_files.only_file(folder, "results_*")
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(DataError, match=message) as caught:
        read_run(folder)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("content", [b"[" * 200_000, b'{"a":' * 200_000])
def test_deep_json_is_an_error_of_one_line(tmp_path: Path, content: bytes) -> None:
    folder = result_files.lm_eval_run(tmp_path, {"sums": PARSED})
    samples = result_files.only_file(folder, "samples_*")
    samples.write_bytes(samples.read_bytes() + content + b"\n")
    with pytest.raises(DataError, match="line 5 is JSON that is nested too deeply to be read"):
        read_run(folder)
    result_files.only_file(folder, "results_*").write_bytes(content)
    with pytest.raises(DataError, match="is not a results file"):
        read_run(folder)


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (MAKERS[0], {"doc": ["a"]}),
        (MAKERS[0], {"doc": None}),
        (MAKERS[0], {"doc": {"question": "?", "levels": nest(300)}}),
        (MAKERS[0], {"resps": 5}),
        (MAKERS[0], {"resps": [[]]}),
        (MAKERS[1], {"filtered_resps": None}),
        (MAKERS[1], {"filtered_resps": {}}),
        (MAKERS[1], {"input_media": 5}),
    ],
)
def test_a_wrong_type_in_a_sample_is_an_error_with_its_line(
    tmp_path: Path, make: Callable[..., Path], change: dict[str, Any]
) -> None:
    folder = make(tmp_path, {"sums": PARSED})
    file = result_files.only_file(folder, "*samples_*")
    lines = result_files.read_lines(file)
    result_files.write_lines(file, [*lines[:2], {**lines[2], **change}, lines[3]])
    with pytest.raises(DataError, match=r"samples_.*, line 3 is "):
        read_run(folder)


def test_what_tasks_of_the_harnesses_record_is_read(tmp_path: Path) -> None:
    """Many tasks of lmms-eval have their version in a list, and null for what they do not use."""
    folder = result_files.lmms_eval_run(tmp_path, {"sums": PARSED})
    expected = read_run(folder)
    file = result_files.only_file(folder, "*_results.json")
    results = json.loads(file.read_text())
    results["configs"]["sums"]["metadata"] = [{"version": 0.0}]
    results |= {"n-samples": {"sums": None}, "group_subtasks": {"sums": None}, "versions": None}
    file.write_text("\ufeff" + json.dumps(results), encoding="utf-8")
    run = read_run(folder)
    assert run.tasks["sums"].samples == expected.tasks["sums"].samples
    assert run.tasks["sums"].settings["parser"] is None
