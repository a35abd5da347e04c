"""The work of several processes under lm-eval; tests/integration/lm_eval/test_several_processes.py runs two."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from truthgate_eval.errors import TaskError
from truthgate_eval.harness.lm_eval.process_shares import prepare_tasks


class ThreeDocuments:
    """A stand-in for a task of lm-eval with three documents, which keeps what it was asked to build."""

    def __init__(self, num_fewshot: int) -> None:
        self.config = SimpleNamespace(task="three", num_fewshot=num_fewshot)
        self.instances: list[Any] = []
        self.built: dict[str, Any] | None = None

    def doc_iterator(
        self, *, rank: int, world_size: int, limit: int | None = None
    ) -> Iterator[tuple[int, Any]]:
        return iter([(number, {}) for number in range(rank, min(limit or 3, 3), world_size)])

    def build_all_requests(self, **options: Any) -> None:
        self.built = options

    def apply_filters(self) -> None: ...


@pytest.mark.parametrize("num_fewshot", [0, 1])
@pytest.mark.parametrize(("limit", "processes"), [(1, 2), (None, 4)])
def test_a_task_with_fewer_documents_than_processes_is_one_line_in_each(
    limit: int | None, processes: int, num_fewshot: int
) -> None:
    """lm-eval stops with an error in one process only, and the others wait for it."""
    for rank in range(processes):
        task: Any = ThreeDocuments(num_fewshot)
        prepare_tasks([task], SimpleNamespace(world_size=processes))
        with pytest.raises(
            TaskError, match=rf"^three: \d documents are fewer than the {processes} processes"
        ):
            task.build_all_requests(limit=limit, rank=rank, world_size=processes)
        assert task.built is None


def test_enough_documents_are_built_as_before() -> None:
    task: Any = ThreeDocuments(0)
    prepare_tasks([task], SimpleNamespace(world_size=3))
    task.build_all_requests(limit=None, rank=2, world_size=3)
    assert task.built == {"limit": None, "rank": 2, "world_size": 3}
