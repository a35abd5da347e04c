"""The search for a gate: the grid, the tie rule, the recommendation, and the folder of an interrupted sweep."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from truthgate_eval.errors import DataError, GateError, TruthGateError
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.gating.sweep import (
    Candidate,
    EvalResult,
    best_candidate,
    candidate_gate,
    make_grid,
    recommend,
)
from truthgate_eval.gating.sweep_plot import save_sweep_plot
from truthgate_eval.gating.sweep_store import SweepStore

SCORES = TruthScores(np.linspace(0.5, 0.9, 12).reshape(3, 4), metadata={"model": "m", "site": "post"})


def test_the_grid_has_the_vanilla_model_once_and_no_setting_twice() -> None:
    grid = make_grid(lam="0,1,1,-2", norm="centered,minmax", site="post,pre")
    assert [candidate.lam for candidate in grid].count(0) == 1 and grid[0].lam == 0
    assert len(grid) == len({candidate.label for candidate in grid}) == 1 + 2 * 2 * 2
    for wrong in ({"lam": "x"}, {"norm": "huge"}):
        with pytest.raises(GateError):
            make_grid(**{"lam": "1", "norm": "minmax", "site": "post", **wrong})


def test_of_equal_values_the_smallest_lam_is_chosen_and_the_vanilla_model_first() -> None:
    candidates = [
        Candidate(4, "minmax", "post", 0.5),
        Candidate(-1, "minmax", "post", 0.6),
        Candidate(2, "minmax", "post", 0.6),
    ]
    assert best_candidate(candidates) is candidates[1]
    vanilla = Candidate(0, "minmax", "post", 0.6)
    assert best_candidate([*candidates, vanilla]) is vanilla


def test_the_smallest_loss_is_chosen() -> None:
    candidates = [Candidate(lam, "minmax", "post", value) for lam, value in ((0, 0.6), (2, 0.5), (4, 0.5))]
    assert best_candidate(candidates, smallest=True) is candidates[1]


def test_candidates_are_kept_and_an_incomplete_line_is_dropped(tmp_path: Path) -> None:
    folder = SweepStore(tmp_path / "s", {"tasks": ["t"], "limit": None})
    candidates = [
        Candidate(0, "minmax", "post", 0.5, None, 10),
        Candidate(1, "minmax", "post", 0.6, 0.01, 10),
    ]
    for candidate in candidates:
        folder.add(candidate)
    with folder.points_file.open("a") as file:
        file.write('{"lam": 2, "nor')
    again = SweepStore(tmp_path / "s", {"tasks": ["t"], "limit": None})
    assert list(again.candidates().values()) == candidates
    again.add(Candidate(2, "minmax", "post", 0.7))
    assert [candidate.lam for candidate in again.candidates().values()] == [0, 1, 2]


def test_another_sweep_cannot_continue_in_the_folder(tmp_path: Path) -> None:
    SweepStore(tmp_path, {"tasks": ["t"], "limit": 5})
    with pytest.raises(
        TruthGateError, match=r"holds a sweep with limit=5, this one has limit=6: give another"
    ):
        SweepStore(tmp_path, {"tasks": ["t"], "limit": 6})
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        SweepStore(tmp_path, {"tasks": ["t"], "limit": 5})


def test_each_gate_is_evaluated_once_on_the_test_split(tmp_path: Path) -> None:
    store, calls = SweepStore(tmp_path, {}), []

    def evaluate(where: Path) -> EvalResult:
        calls.append(where.name)
        (where / "results.json").write_text("{}")
        return EvalResult(0.5, None, 3)

    vanilla, random = GateConfig.parse("none"), GateConfig.parse("random:1")
    for _ in range(2):
        where, found = store.test_result("vanilla", vanilla, evaluate)
        assert found == EvalResult(0.5, None, 3) and (where / "results.json").is_file()
    assert calls == ["vanilla"]
    store.test_result("vanilla", random, evaluate)  # another gate under the name replaces the run
    assert calls == ["vanilla", "vanilla"]

    def interrupted(_: Path) -> EvalResult:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.test_result("gated", random, interrupted)
    store.test_result("gated", random, evaluate)
    assert calls == ["vanilla", "vanilla", "gated"]


def test_a_candidates_gate_has_its_settings() -> None:
    gate = candidate_gate(SCORES, "a.npz", Candidate(0.3, "minmax", "pre"))
    assert (gate.lam, gate.norm, gate.site, gate.source) == (0.3, "minmax", "pre", "a.npz")
    assert candidate_gate(SCORES, "a.npz", Candidate(0, "minmax", "pre")).is_vanilla


def test_a_sweep_gates_its_own_layers_and_not_those_recommended_before() -> None:
    candidate = Candidate(0.3, "minmax", "post")
    before = recommend(
        SCORES,
        candidate,
        [candidate],
        tasks="t",
        metric="acc",
        modality="text",
        split="selection",
        layers="1",
    )
    assert GateConfig.parse(before).layers == (1,)
    assert GateConfig.parse(before, layers="0").layers == (0,)
    assert candidate_gate(before, "a.npz", candidate).layers is None
    assert candidate_gate(before, "a.npz", candidate, "0-1").layers == (0, 1)


def test_the_choice_and_all_candidates_are_saved_with_the_scores(tmp_path: Path) -> None:
    candidates = [Candidate(0, "minmax", "post", 0.5), Candidate(1, "minmax", "post", 0.6, 0.01, 9)]
    artifact = recommend(
        SCORES, candidates[1], candidates, tasks="a,b", metric="acc", modality="image", split="selection"
    )
    meta = TruthScores.load(artifact.save(tmp_path / "a.npz")).metadata["recommended"]
    assert meta["lam"] == 1 and meta["modality"] == "image" and len(meta["points"]) == 2
    assert meta["points"][1] == json.loads(json.dumps(meta["points"][1]))
    assert artifact.fingerprint == SCORES.fingerprint
    assert "conditions" not in meta
    under = recommend(
        SCORES, candidates[1], candidates, tasks="a", metric="acc", modality="text", split="selection",
        conditions={"contrast": 0.5},
    )  # fmt: skip
    assert under.metadata["recommended"]["conditions"] == {"contrast": 0.5}
    assert GateConfig.parse(under).lam == 1


def test_the_plot_is_a_png_file(tmp_path: Path) -> None:
    candidates = [Candidate(0, "minmax", "post", 0.5, 0.02, 9), Candidate(1, "minmax", "post", 0.6, 0.01, 9)]
    save_sweep_plot(candidates, candidates[0], "acc", "t", tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_from_before_there_were_actions_is_not_evaluated_again(tmp_path: Path) -> None:
    store, calls = SweepStore(tmp_path, {}), []

    def evaluate(where: Path) -> EvalResult:
        calls.append(where.name)
        return EvalResult(0.5, None, 3)

    soft = GateConfig.parse("random:1")
    store.test_result("random", soft, evaluate)
    done_file = tmp_path / "rest" / "random" / "done.json"
    done = json.loads(done_file.read_text())
    del done["gate"]["action"], done["gate"]["positions"]
    done_file.write_text(json.dumps(done))
    store.test_result("random", soft, evaluate)
    assert calls == ["random"]
    store.test_result("random", GateConfig.parse("random:1", action="select", top=1, bottom=1), evaluate)
    assert calls == ["random", "random"]
