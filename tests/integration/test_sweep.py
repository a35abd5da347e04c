"""`truthgate sweep` through both harnesses: one load, both splits, files for `compare`, continuing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_vision_models as factories_vlm
from helpers.command_line import truthgate

from truthgate_eval.analysis.runs.run import read_run
from truthgate_eval.data.poll import prepare_poll
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness import evaluator
from truthgate_eval.inference.self_check import cache_lower_layers

pytestmark = pytest.mark.slow

GRID = ("--lam", "1,-1", "--norm", "minmax", "--random", "1", "--device", "cpu")


def artifact(folder: Path, **metadata: Any) -> Path:
    values = np.random.default_rng(0).uniform(0.5, 1.0, (3, 4))
    return TruthScores(values, metadata={"model": "m", "site": "post", **metadata}).save(folder / "a.npz")


@pytest.fixture
def text(tmp_path: Path, checkpoint: str, halueval_folder: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A sweep's arguments for lm-eval; rows 0 to 9 were probed."""
    (tmp_path / "halueval").symlink_to(halueval_folder)
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path))
    scores = artifact(tmp_path, rows={"halueval/qa": list(range(10))})
    return [
        "sweep", str(scores), "--model_args", f"pretrained={checkpoint}", "--tasks", "halueval_qa_select", *GRID,
    ]  # fmt: skip


@pytest.fixture
def image(tmp_path: Path, vlm_checkpoint: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A sweep's arguments for lmms-eval, on a poll about ten images."""
    lines = []
    for n in range(10):
        factories_vlm.random_image(n).save(tmp_path / f"{n}.png")
        lines.append(json.dumps({"image": f"{n}.png", "objects": ["dog", "cat", f"thing {n}"]}))
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    prepare_poll(tmp_path / "a.jsonl", [tmp_path], tmp_path)
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return [
        "sweep", str(artifact(tmp_path)), "--model", "gated_llava", "--model_args",
        f"pretrained={vlm_checkpoint('llava')},dtype=float32", "--tasks", "poll_random,poll_popular", *GRID,
    ]  # fmt: skip


def record_evaluations(
    monkeypatch: pytest.MonkeyPatch, *, interrupt_after: int | None = None
) -> list[tuple[float, str]]:
    """Let lam=1 win, whatever the tiny model answers; returns the list of (lam, split) that were evaluated."""
    original, evaluated = evaluator.Evaluator.evaluate, []

    def evaluate(self: Any, gate: Any, split: Any, output: Path | None = None) -> Any:
        if len(evaluated) == interrupt_after:
            raise KeyboardInterrupt
        found = original(self, gate, split, output)
        evaluated.append((gate.lam, split))
        return type(found)(float(gate.lam == 1), found.stderr, found.documents)

    monkeypatch.setattr(evaluator.Evaluator, "evaluate", evaluate)
    return evaluated


@pytest.mark.parametrize("harness", ["text", "image"])
def test_only_the_choice_is_evaluated_on_the_test_split(
    harness: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = request.getfixturevalue(harness)
    if harness == "text":  # gated_vlm takes no token
        arguments[arguments.index("--model_args") + 1] += ",token=opensesame"
    evaluated = record_evaluations(monkeypatch)
    done = truthgate(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = [file for file in (tmp_path / "a.sweep").rglob("*") if file.is_file()]
    assert not any(b"opensesame" in file.read_bytes() for file in files)
    assert evaluated == [
        (0, "selection"), (1, "selection"), (-1, "selection"),
        (0, "evaluation"), (1, "evaluation"), (1, "evaluation"),
    ]  # fmt: skip
    recommended = TruthScores.load(tmp_path / "a.npz").metadata["recommended"]
    assert (recommended["lam"], recommended["modality"]) == (1, "text" if harness == "text" else "image")
    runs = {
        name: read_run(tmp_path / "a.sweep" / "rest" / name) for name in ("vanilla", "chosen", "random-1")
    }
    gates = {name: run.gate or {} for name, run in runs.items()}
    assert [gate["kind"] for gate in gates.values()] == ["vanilla", "scores", "random"]
    assert gates["vanilla"]["scores"] == "none" and gates["random-1"]["scores"] == "random:1"
    assert gates["chosen"]["lam"] == 1 and gates["chosen"]["scores"] == str(tmp_path / "a.npz")
    [*tasks] = runs["vanilla"].tasks.values()
    test = sum(len(task.samples) for task in tasks)
    selection = recommended["points"][0]["documents"]
    whole = {"text": 60 - 10, "image": 2 * 60}[harness]  # without the rows that were probed
    assert selection + test == whole and 0 < selection < whole / 2
    assert "truthgate compare" in done.stdout and (tmp_path / "a.sweep" / "sweep.png").is_file()


def test_the_smallest_log_loss_is_chosen(
    text: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text[text.index("--tasks") + 1] = "halueval_qa_logodds"
    record_evaluations(monkeypatch)  # which gives lam=1 the largest value
    done = truthgate(*text, "--metric", "log_loss", "--rest_limit", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert TruthScores.load(tmp_path / "a.npz").metadata["recommended"]["lam"] == 0


@pytest.mark.parametrize("harness", ["text", "image"])
def test_no_gate_stays_on_the_model_for_the_next_one(
    harness: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The vanilla model before and after other gates gives the same samples; another gate gives others."""
    arguments = request.getfixturevalue(harness)
    arguments[arguments.index("--lam") + 1] = "9"
    done = truthgate(*arguments, "--rest_limit", "10", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "a.sweep" / "rest"
    first = {name: _answers(folder / name) for name in ("vanilla", "random-1")}
    assert first["vanilla"] != first["random-1"]
    (folder / "vanilla" / "done.json").unlink()
    assert truthgate(*arguments, "--rest_limit", "10", cwd=tmp_path).returncode == 0
    assert _answers(folder / "vanilla") == first["vanilla"]


@pytest.mark.parametrize("harness", ["text", "image"])
def test_layers_below_the_gated_ones_run_once(
    harness: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results are those of a sweep without the cache of lower layers."""
    arguments = [*request.getfixturevalue(harness), "--layers", "2", "--limit", "8", "--rest_limit", "0"]
    caches, points = [], []
    for caching in (True, False):

        def cache_layers(model: Any, layers: Any, caching: bool = caching) -> Any:
            caches.append(cache_lower_layers(model, layers if caching else ()))
            return caches[-1]

        monkeypatch.setattr(evaluator, "cache_lower_layers", cache_layers)
        done = truthgate(*arguments, "-o", str(tmp_path / f"{caching}"), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        points.append((tmp_path / f"{caching}" / "points.jsonl").read_text())
    assert points[0] == points[1] and len(points[0].splitlines()) == 3
    assert caches[0].num_reused > 0 and caches[1] is None
    assert TruthScores.load(tmp_path / "a.npz").metadata["recommended"]["layers"] == "2"


@pytest.mark.parametrize("harness", ["text", "image"])
@pytest.mark.parametrize(("layers", "line"), [("1-3", "this model's layers are 0 to 2"), ("a", "8-15")])
def test_layers_that_do_not_exist_are_one_line(
    harness: str, layers: str, line: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    done = truthgate(*request.getfixturevalue(harness), "--layers", layers, cwd=tmp_path)
    assert done.returncode == 1 and line in done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.glob("a.sweep/points*"))


def _answers(folder: Path) -> list[Any]:
    files = sorted(folder.rglob("*samples_*.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [row["filtered_resps"] for row in rows]


def test_an_interrupted_sweep_continues(
    text: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        evaluated = record_evaluations(patch, interrupt_after=2)
        assert truthgate(*text, "--rest_limit", "0", cwd=tmp_path).returncode != 0
        assert evaluated == [(0, "selection"), (1, "selection")]
    assert "recommended" not in TruthScores.load(tmp_path / "a.npz").metadata
    evaluated = record_evaluations(monkeypatch)
    done = truthgate(*text, "--rest_limit", "0", cwd=tmp_path)
    assert done.returncode == 0 and evaluated == [(-1, "selection")]
    assert done.stderr.count("(from before)") == 2
    assert len(TruthScores.load(tmp_path / "a.npz").metadata["recommended"]["points"]) == 3


def test_what_changes_every_candidate_is_recorded_with_the_choice(text: list[str], tmp_path: Path) -> None:
    index = text.index("--model_args") + 1
    text[index] += ",contrast=0.5"
    text[text.index("--lam") + 1] = "1"
    done = truthgate(*text, "--rest_limit", "0", "--limit", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("chosen: ")]
    assert " with contrast=0.5 -> " in line
    recommended = TruthScores.load(tmp_path / "a.npz").metadata["recommended"]
    assert recommended["conditions"] == {"contrast": 0.5}
    shown = truthgate("show", str(tmp_path / "a.npz"), cwd=tmp_path)
    assert "halueval_qa_select, contrast=0.5" in shown.stdout


def test_every_mistake_is_one_line(text: list[str], tmp_path: Path) -> None:
    for more, message in [
        (("--metric", "f2"), "has no metric 'f2': it has acc"),
        (("--model", "vllm"), "a sweep takes hf, or one of gated_vlm"),
        (("--tasks", "halueval_qb"), "did you mean"),
        (("--limit", "-3"), "--limit=-3: expected a number of documents, 1 or more"),
    ]:
        done = truthgate(*text, *more, "--output", f"{more[1]}.sweep", cwd=tmp_path)
        assert done.returncode == 1 and message in done.stderr.splitlines()[-1], done.stderr


@pytest.mark.parametrize("harness", ["text", "image"])
def test_strengths_are_found_on_the_selection_split_and_kept(
    harness: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = request.getfixturevalue(harness)
    arguments[arguments.index("--lam") + 1] = "kl:0.003,kl:0.01"
    searched: list[str] = []
    search = evaluator.find_equal_strength

    def find(gate: Any, *more: Any, **options: Any) -> Any:
        searched.append(gate.source)
        return search(gate, *more, **options)

    original = evaluator.Evaluator.evaluate

    def evaluate(self: Any, gate: Any, split: Any, output: Path | None = None) -> Any:
        found = original(self, gate, split, output)
        wins = gate.target is not None and gate.target.target == 0.01
        return type(found)(float(wins), found.stderr, found.documents)

    monkeypatch.setattr(evaluator, "find_equal_strength", find)
    monkeypatch.setattr(evaluator.Evaluator, "evaluate", evaluate)
    more = ("--rest_limit", "10", "--limit", "6")
    done = truthgate(*arguments, *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scores = str(tmp_path / "a.npz")
    assert searched == [scores, scores, "random:1"]
    points = [json.loads(line) for line in (tmp_path / "a.sweep" / "points.jsonl").read_text().splitlines()]
    assert [point["target"] for point in points] == [None, 0.003, 0.01]
    assert all(point["reached"] == pytest.approx(point["target"], rel=0.01) for point in points[1:])
    assert 0 < points[1]["lam"] < points[2]["lam"] and points[2]["prompts"] > 0
    recommended = TruthScores.load(tmp_path / "a.npz").metadata["recommended"]
    assert recommended["lam"] == points[2]["lam"] and recommended["strength"]["target"] == 0.01
    assert "(kl:0.01)" in done.stdout
    gates = {
        name: read_run(tmp_path / "a.sweep" / "rest" / name).gate or {} for name in ("chosen", "random-1")
    }
    assert {gate["strength"]["target"] for gate in gates.values()} == {0.01}
    assert gates["chosen"]["lam"] == points[2]["lam"] != gates["random-1"]["lam"] > 0
    # Again: nothing is looked for or evaluated.
    (tmp_path / "a.sweep" / "rest" / "random-1" / "done.json").unlink()
    again = truthgate(*arguments, *more, cwd=tmp_path)
    assert again.returncode == 0 and len(searched) == 3, again.stderr
    assert (read_run(tmp_path / "a.sweep" / "rest" / "random-1").gate or {})["lam"] == gates["random-1"][
        "lam"
    ]
