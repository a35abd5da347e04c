"""Choosing a gate: the grid, the two parts of the data, the tie rule, and going on after an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from truthgate_eval.errors import DataError, GateError, TaskError, TruthGateError
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.gating.sweep import (
    Candidate,
    EvalResult,
    best_candidate,
    candidate_gate,
    make_grid,
    recommend,
    split_documents,
    split_indices,
)
from truthgate_eval.gating.sweep_plot import save_sweep_plot
from truthgate_eval.gating.sweep_store import SweepStore
from truthgate_eval.harness.outcomes import eval_result

SCORES = TruthScores(np.linspace(0.5, 0.9, 12).reshape(3, 4), metadata={"model": "m", "site": "post"})


def test_the_grid_has_the_vanilla_model_once_and_no_setting_twice() -> None:
    grid = make_grid(lam="0,1,1,-2", norm="centered,minmax", site="post,pre")
    assert [point.lam for point in grid].count(0) == 1 and grid[0].lam == 0
    assert len(grid) == len({point.label for point in grid}) == 1 + 2 * 2 * 2
    for wrong in ({"lam": "x"}, {"norm": "huge"}):
        with pytest.raises(GateError):
            make_grid(**{"lam": "1", "norm": "minmax", "site": "post", **wrong})


def test_of_equal_values_the_gentlest_gate_is_chosen_and_first_of_all_none() -> None:
    points = [
        Candidate(4, "minmax", "post", 0.5),
        Candidate(-1, "minmax", "post", 0.6),
        Candidate(2, "minmax", "post", 0.6),
    ]
    assert best_candidate(points) is points[1]
    vanilla = Candidate(0, "minmax", "post", 0.6)
    assert best_candidate([*points, vanilla]) is vanilla


@given(st.lists(st.integers(0, 30), min_size=2, max_size=80))
def test_a_picture_is_on_one_side_only_whatever_the_order(pictures: list[int]) -> None:
    documents = [{"image": f"{n}.png", "question": "Is it?"} for n in pictures]
    parts = dict(zip(pictures, split_documents(documents), strict=True))
    assert split_documents(documents) == [parts[n] for n in pictures]
    assert dict(zip(pictures[::-1], split_documents(documents[::-1]), strict=True)) == parts
    chosen = [n for n, part in parts.items() if part == "selection"]
    assert len(chosen) == max(1, round(len(parts) / 5))


def test_documents_that_say_their_part_are_believed_and_limits_cut_each_part() -> None:
    documents = [
        {"subset": part, "question": str(n)} for n, part in enumerate(["evaluation", "selection"] * 6)
    ]
    places = split_indices("t", documents, {"selection": 2, "evaluation": None})
    assert places == {"selection": [1, 3], "evaluation": [0, 2, 4, 6, 8, 10]}
    with pytest.raises(TaskError, match="task 't': of its 6 documents none is in the selection part"):
        split_indices("t", documents[::2], {})


def test_the_value_is_the_mean_over_tasks_with_its_error() -> None:
    results = {
        "a": {"alias": "a", "acc,none": 0.5, "acc_stderr,none": 0.03},
        "b": {"acc,none": 0.7, "acc_stderr,none": "N/A", "acc_stderr_clustered,none": 0.04},
        "group": {"acc,none": 0.9},
    }
    found = eval_result(results, {"a": 10, "b": 30}, "acc")
    assert (found.value, found.stderr, found.documents) == (pytest.approx(0.6), pytest.approx(0.025), 40)
    assert eval_result(results, {"a": 10, "group": 1}, "acc").stderr is None
    with pytest.raises(TaskError, match="task 'a' has no metric 'f1': it has acc"):
        eval_result(results, {"a": 10}, "f1")


def test_points_are_kept_and_a_line_cut_off_is_done_again(tmp_path: Path) -> None:
    folder = SweepStore(tmp_path / "s", {"tasks": ["t"], "limit": None})
    points = [Candidate(0, "minmax", "post", 0.5, None, 10), Candidate(1, "minmax", "post", 0.6, 0.01, 10)]
    for point in points:
        folder.add(point)
    with folder.points_file.open("a") as file:
        file.write('{"lam": 2, "nor')
    again = SweepStore(tmp_path / "s", {"tasks": ["t"], "limit": None})
    assert list(again.candidates().values()) == points
    again.add(Candidate(2, "minmax", "post", 0.7))
    assert [point.lam for point in again.candidates().values()] == [0, 1, 2]


def test_another_sweep_may_not_go_on_in_the_folder(tmp_path: Path) -> None:
    SweepStore(tmp_path, {"tasks": ["t"], "limit": 5})
    with pytest.raises(
        TruthGateError, match=r"holds a sweep with limit=5, this one has limit=6: give another"
    ):
        SweepStore(tmp_path, {"tasks": ["t"], "limit": 6})
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        SweepStore(tmp_path, {"tasks": ["t"], "limit": 5})


def test_the_rest_is_judged_once_for_each_gate(tmp_path: Path) -> None:
    folder, calls = SweepStore(tmp_path, {}), []

    def judge(where: Path) -> EvalResult:
        calls.append(where.name)
        (where / "results.json").write_text("{}")
        return EvalResult(0.5, None, 3)

    vanilla, random = GateConfig.parse("none"), GateConfig.parse("random:1")
    for _ in range(2):
        where, found = folder.test_result("vanilla", vanilla, judge)
        assert found == EvalResult(0.5, None, 3) and (where / "results.json").is_file()
    assert calls == ["vanilla"]
    folder.test_result("vanilla", random, judge)  # another gate under the name: what was there is of no use
    assert calls == ["vanilla", "vanilla"]

    def interrupted(_: Path) -> EvalResult:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.test_result("gated", random, interrupted)
    folder.test_result("gated", random, judge)
    assert calls == ["vanilla", "vanilla", "gated"]


def test_a_point_is_the_gate_that_a_user_would_write() -> None:
    gate = candidate_gate(SCORES, "a.npz", Candidate(0.3, "minmax", "pre"))
    assert (gate.lam, gate.norm, gate.site, gate.source) == (0.3, "minmax", "pre", "a.npz")
    assert candidate_gate(SCORES, "a.npz", Candidate(0, "minmax", "pre")).is_vanilla


def test_a_sweep_gates_its_own_layers_and_not_those_recommended_before() -> None:
    point = Candidate(0.3, "minmax", "post")
    before = recommend(SCORES, point, [point], tasks="t", metric="acc", modality="text", layers="1")
    assert GateConfig.parse(before).layers == (1,)
    assert GateConfig.parse(before, layers="0").layers == (0,)
    assert candidate_gate(before, "a.npz", point).layers is None
    assert candidate_gate(before, "a.npz", point, "0-1").layers == (0, 1)


def test_the_choice_and_all_points_are_kept_with_the_scores(tmp_path: Path) -> None:
    points = [Candidate(0, "minmax", "post", 0.5), Candidate(1, "minmax", "post", 0.6, 0.01, 9)]
    artifact = recommend(SCORES, points[1], points, tasks="a,b", metric="acc", modality="image")
    meta = TruthScores.load(artifact.save(tmp_path / "a.npz")).metadata["recommended"]
    assert meta["lam"] == 1 and meta["modality"] == "image" and len(meta["points"]) == 2
    assert meta["points"][1] == json.loads(json.dumps(meta["points"][1]))
    assert artifact.fingerprint == SCORES.fingerprint


def test_the_plot_is_a_picture_of_the_points(tmp_path: Path) -> None:
    points = [Candidate(0, "minmax", "post", 0.5, 0.02, 9), Candidate(1, "minmax", "post", 0.6, 0.01, 9)]
    save_sweep_plot(points, "acc", "t", tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
