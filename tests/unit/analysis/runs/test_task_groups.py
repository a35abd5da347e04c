"""Which leaderboards a run's tasks make, and their parts."""

from __future__ import annotations

from pathlib import Path

from helpers import result_files
from helpers.leaderboards import BAD, GOOD

from truthgate_eval.analysis.runs.run import read_run
from truthgate_eval.analysis.runs.task_groups import TaskGroup, task_groups

TWO_FILTERS = {"strict": BAD, "loose": GOOD}


def groups_of(folder: Path, parsed: dict, groups: dict[str, list[str]] | None = None) -> list[TaskGroup]:
    return task_groups(read_run(result_files.lm_eval_run(folder, parsed, groups=groups)))


def test_a_task_alone_is_a_leaderboard_with_a_part_per_filter(tmp_path: Path) -> None:
    assert groups_of(tmp_path, {"sums": TWO_FILTERS, "qa": BAD}) == [
        TaskGroup("sums", {"sums,strict": ("sums,strict",), "sums,loose": ("sums,loose",)}),
        TaskGroup("qa", {"qa": ("qa",)}),
    ]


def test_members_of_a_group_are_parts_and_their_mean_is_the_last(tmp_path: Path) -> None:
    [group] = groups_of(tmp_path, {"g_a": BAD, "g_b": GOOD}, {"g": ["g_a", "g_b"]})
    assert group == TaskGroup("g", {"a": ("g_a",), "b": ("g_b",), "mean": ("g_a", "g_b")})


def test_subgroups_with_filters_have_a_mean_per_filter(tmp_path: Path) -> None:
    parsed = {"g_x_1": TWO_FILTERS, "g_x_2": TWO_FILTERS, "g_y": BAD}
    [group] = groups_of(tmp_path, parsed, {"g": ["g_x", "g_y"], "g_x": ["g_x_1", "g_x_2"]})
    assert group.parts == {
        "x,strict": ("g_x_1,strict", "g_x_2,strict"),
        "x,loose": ("g_x_1,loose", "g_x_2,loose"),
        "y": ("g_y",),
        "mean,strict": ("g_x_1,strict", "g_x_2,strict", "g_y"),
        "mean,loose": ("g_x_1,loose", "g_x_2,loose", "g_y"),
    }


def test_tasks_with_one_filter_each_have_one_mean(tmp_path: Path) -> None:
    [group] = groups_of(tmp_path, {"a": {"first": BAD}, "b": {"last": BAD}}, {"g": ["a", "b"]})
    assert group.parts == {"a": ("a,first",), "b": ("b,last",), "mean": ("a,first", "b,last")}


def test_tasks_that_share_no_filter_have_no_mean(tmp_path: Path) -> None:
    other = {"first": BAD, "last": GOOD}
    parsed = {"a": TWO_FILTERS, "b": other, "c": BAD}
    [group] = groups_of(tmp_path, parsed, {"g": ["ab", "c"], "ab": ["a", "b"]})
    full_names = ["a,strict", "a,loose", "b,first", "b,last", "c"]
    assert group.parts == {name: (name,) for name in full_names}
