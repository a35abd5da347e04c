"""Which tasks of a study may make a base's scores."""

from __future__ import annotations

import pytest

from truthgate_eval.cli.study_arguments import check_base_tasks, parse_own_tasks
from truthgate_eval.errors import TaskError


@pytest.mark.parametrize(
    ("choose", "test", "targets", "option"),
    [
        (None, None, (0.01,), "--tasks"),
        (None, None, (0.01, 0.02), "--tasks"),
        ("b", None, (0.01, 0.02), "--tasks"),
        (None, "b", (0.01, 0.02), "--tasks"),  # a fifth of them chooses
        ("c", "a", (0.01, 0.02), "--test_tasks"),
        ("b,a", "c", (0.01, 0.02), "--choose_tasks"),
    ],
)
def test_a_base_is_not_scored_on_what_its_gates_are_tested_or_chosen_on(
    choose: str | None, test: str | None, targets: tuple[float, ...], option: str
) -> None:
    tasks = "x,a" if option == "--tasks" else "x"
    own = parse_own_tasks(tasks, choose, test, targets)
    with pytest.raises(TaskError, match=f"^--base_tasks a: {option} has it, too, and gates are tested or"):
        check_base_tasks(["d", "e,a"], tasks, own, targets)


@pytest.mark.parametrize(("choose", "test", "targets"), [(None, "b", (0.01,)), ("c", "b", (0.01, 0.02))])
def test_a_base_may_be_scored_on_the_tasks_that_only_make_scores(
    choose: str | None, test: str | None, targets: tuple[float, ...]
) -> None:
    check_base_tasks(["a"], "a", parse_own_tasks("a", choose, test, targets), targets)
