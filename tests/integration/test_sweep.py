"""`truthgate sweep` through both hosts: one load, either part, files that `compare` reads, going on."""

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
from truthgate_eval.harness.lm_eval import evaluator as lm_eval_sweep
from truthgate_eval.harness.lmms_eval import evaluator as lmms_eval_sweep
from truthgate_eval.inference.lower_layer_cache import cache_lower_layers

pytestmark = pytest.mark.slow

GRID = ("--lam", "1,-1", "--norm", "minmax", "--random", "1", "--device", "cpu")


def artifact(folder: Path, **metadata: Any) -> Path:
    values = np.random.default_rng(0).uniform(0.5, 1.0, (3, 4))
    return TruthScores(values, metadata={"model": "m", "site": "post", **metadata}).save(folder / "a.npz")


@pytest.fixture
def text(tmp_path: Path, checkpoint: str, halueval_folder: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A sweep's arguments under lm-eval; rows 0 to 9 were probed."""
    (tmp_path / "halueval").symlink_to(halueval_folder)
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path))
    scores = artifact(tmp_path, rows={"halueval/qa": list(range(10))})
    return [
        "sweep", str(scores), "--model_args", f"pretrained={checkpoint}", "--tasks", "halueval_qa_select", *GRID,
    ]  # fmt: skip


@pytest.fixture
def pictured(
    tmp_path: Path, vlm_checkpoint: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """A sweep's arguments under lmms-eval, on a poll about ten pictures."""
    lines = []
    for n in range(10):
        factories_vlm.picture(n).save(tmp_path / f"{n}.png")
        lines.append(json.dumps({"image": f"{n}.png", "objects": ["dog", "cat", f"thing {n}"]}))
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    prepare_poll(tmp_path / "a.jsonl", [tmp_path], tmp_path)
    monkeypatch.setenv("TRUTHGATE_DATA", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return [
        "sweep", str(artifact(tmp_path)), "--model", "gated_llava", "--model_args",
        f"pretrained={vlm_checkpoint('llava')},dtype=float32", "--tasks", "poll_random,poll_popular", *GRID,
    ]  # fmt: skip


def choose_gated(bench: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str]]:
    """Let lam=1 win, whatever the tiny model says; returns the list of (lam, part) that were judged."""
    plain, judged = bench.judge, []

    def judge(self: Any, gate: Any, part: str, output: Path | None = None) -> Any:
        found = plain(self, gate, part, output)
        judged.append((gate.lam, part))
        return type(found)(float(gate.lam == 1), found.stderr, found.documents)

    monkeypatch.setattr(bench, "evaluate", judge)
    return judged


@pytest.mark.parametrize("host", ["text", "pictured"])
def test_the_choice_alone_is_judged_on_the_rest(
    host: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = request.getfixturevalue(host)
    bench = lm_eval_sweep.LmEvalEvaluator if host == "text" else lmms_eval_sweep.LmmsEvalEvaluator
    judged = choose_gated(bench, monkeypatch)
    done = truthgate(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert judged == [
        (0, "selection"), (1, "selection"), (-1, "selection"),
        (0, "evaluation"), (1, "evaluation"), (0, "evaluation"),
    ]  # fmt: skip
    recommended = TruthScores.load(tmp_path / "a.npz").metadata["recommended"]
    assert (recommended["lam"], recommended["modality"]) == (1, "text" if host == "text" else "image")
    runs = {
        name: read_run(tmp_path / "a.sweep" / "rest" / name) for name in ("vanilla", "chosen", "random-1")
    }
    gates = {name: run.gate or {} for name, run in runs.items()}
    assert gates["vanilla"]["scores"] == "none" and gates["random-1"]["scores"] == "random:1"
    assert gates["chosen"]["lam"] == 1 and gates["chosen"]["scores"] == str(tmp_path / "a.npz")
    [*tasks] = runs["vanilla"].tasks.values()
    rest = sum(len(task.samples) for task in tasks)
    selection = recommended["points"][0]["documents"]
    whole = {"text": 60 - 10, "pictured": 2 * 60}[host]  # without the rows that were probed
    assert selection + rest == whole and 0 < selection < whole / 2
    assert "truthgate compare" in done.stdout and (tmp_path / "a.sweep" / "sweep.png").is_file()


@pytest.mark.parametrize("host", ["text", "pictured"])
def test_the_gate_is_off_between_settings_and_vanilla_is_vanilla(
    host: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """lam = 0 in front of and behind other gates gives the same samples; another gate gives others."""
    arguments = request.getfixturevalue(host)
    arguments[arguments.index("--lam") + 1] = "9"
    done = truthgate(*arguments, "--rest_limit", "10", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "a.sweep" / "rest"
    first = {name: _answers(folder / name) for name in ("vanilla", "random-1")}
    assert first["vanilla"] != first["random-1"]
    (folder / "vanilla" / "done.json").unlink()
    assert truthgate(*arguments, "--rest_limit", "10", cwd=tmp_path).returncode == 0
    assert _answers(folder / "vanilla") == first["vanilla"]


@pytest.mark.parametrize("host", ["text", "pictured"])
def test_layers_below_the_gated_ones_run_once(
    host: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is found is what a sweep finds that computes everything anew."""
    arguments = [*request.getfixturevalue(host), "--layers", "2", "--limit", "8", "--rest_limit", "0"]
    bench = lm_eval_sweep if host == "text" else lmms_eval_sweep
    again, points = [], []
    for keeps in (True, False):

        def keep(forward: Any, layers: Any, keeps: bool = keeps) -> Any:
            kept = cache_lower_layers(forward, layers if keeps else ())
            again.append(lambda: kept and kept.again)
            return kept

        monkeypatch.setattr(bench, "cache_lower_layers", keep)
        done = truthgate(*arguments, "-o", str(tmp_path / f"{keeps}"), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        points.append((tmp_path / f"{keeps}" / "points.jsonl").read_text())
    assert points[0] == points[1] and len(points[0].splitlines()) == 3
    assert again[0]() > 0 and again[1]() is None
    assert TruthScores.load(tmp_path / "a.npz").metadata["recommended"]["layers"] == "2"


@pytest.mark.parametrize("host", ["text", "pictured"])
@pytest.mark.parametrize(("layers", "line"), [("1-3", "this model's layers are 0 to 2"), ("a", "8-15")])
def test_layers_that_do_not_exist_are_one_line(
    host: str, layers: str, line: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    done = truthgate(*request.getfixturevalue(host), "--layers", layers, cwd=tmp_path)
    assert done.returncode == 1 and line in done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.glob("a.sweep/points*"))


def _answers(folder: Path) -> list[Any]:
    files = sorted(folder.rglob("*samples_*.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [row["filtered_resps"] for row in rows]


def test_an_interrupted_sweep_goes_on_where_it_was(
    text: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = lm_eval_sweep.LmEvalEvaluator
    plain, judged = bench.judge, []

    def judge(self: Any, gate: Any, part: str, output: Path | None = None) -> Any:
        if len(judged) == 2:
            raise KeyboardInterrupt
        judged.append(gate.lam)
        return plain(self, gate, part, output)

    monkeypatch.setattr(bench, "evaluate", judge)
    assert truthgate(*text, "--rest_limit", "0", cwd=tmp_path).returncode != 0
    assert "recommended" not in TruthScores.load(tmp_path / "a.npz").metadata
    judged.clear()
    done = truthgate(*text, "--rest_limit", "0", cwd=tmp_path)
    assert done.returncode == 0 and judged == [-1]
    assert done.stderr.count("(from before)") == 2
    assert len(TruthScores.load(tmp_path / "a.npz").metadata["recommended"]["points"]) == 3


def test_mistakes_are_one_line(text: list[str], tmp_path: Path) -> None:
    for more, message in [
        (("--metric", "f2"), "has no metric 'f2': it has acc"),
        (("--model", "vllm"), "a sweep takes hf, or one of gated_vlm"),
        (("--tasks", "halueval_qb"), "did you mean"),
    ]:
        done = truthgate(*text, *more, "--output", f"{more[1]}.sweep", cwd=tmp_path)
        assert done.returncode == 1 and message in done.stderr.splitlines()[-1], done.stderr
