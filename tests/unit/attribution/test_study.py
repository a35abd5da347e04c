from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_models as factories

from truthgate_eval.attribution import study
from truthgate_eval.attribution.evaluation import measure_log_odds
from truthgate_eval.attribution.log_odds import AnswerDocument
from truthgate_eval.attribution.run import AnswerSet, run_gradient
from truthgate_eval.attribution.study import StudyConfig, run_study, split_documents
from truthgate_eval.attribution.study_gates import make_directions
from truthgate_eval.attribution.study_report import markdown, save
from truthgate_eval.errors import GateError, ProbeError
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate import Gate, attach
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.inference import self_check

YES, NO = 90, 91


def answers(count: int, seed: int) -> AnswerSet:
    """Yes/no questions of random tokens, two for each cluster."""
    rng = np.random.default_rng(seed)
    gold = ["yes" if i % 2 else "no" for i in range(count)]
    contexts = [tuple(rng.integers(3, 80, 6).tolist()) for _ in range(count)]
    documents = [
        AnswerDocument(((*context, YES), (*context, NO)), (own == "yes", own == "no"), i)
        for i, (context, own) in enumerate(zip(contexts, gold, strict=True))
    ]
    return AnswerSet(documents, gold, [i // 2 for i in range(count)])


def scores(seed: int = 0, kind: str = "accuracy") -> TruthScores:
    return TruthScores(np.random.default_rng(seed).normal(size=(3, 4)), metadata={"kind": kind})


def test_rows_have_the_same_strength_and_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = factories.tiny_model("llama")
    layout = find_attention_layout(model)
    shared = self_check.load(model, layout.decoder)
    scoring, test = answers(24, 0), answers(20, 1)
    gradient = run_gradient(
        shared, layout, scoring, {"task": "made"}, site="post", batch_size=8, progress=lambda _: None
    )
    config = StudyConfig(targets=(0.002, 0.01), select=2, shuffles=1, randoms=1)
    done: list[int] = []

    def run(key: str) -> study.StudyResult:
        done.clear()
        return run_study(
            shared, layout, {"gradient": gradient}, scoring, test, config=config, folder=tmp_path,
            key={"name": key}, progress=done.append,
        )  # fmt: skip

    result = run("a")
    assert len(result.rows) == len(done) - 1 == (2 + 1) * 2 * 2
    for row in result.rows:
        assert row["divergence"] == pytest.approx(row["target"], rel=0.011)
    row = result.rows[0]
    gate = Gate((1 + row["strength"] * gradient.scores).astype(np.float32), "post")
    vanilla = measure_log_odds(shared, test.documents)
    with attach(model, gate, layout=layout):
        own = measure_log_odds(shared, test.documents)
    expected = np.logaddexp(0, -own).mean() - np.logaddexp(0, -vanilla).mean()
    assert row["difference"]["log_loss"]["mean"] == pytest.approx(expected, abs=1e-5)
    assert {"vanilla", "gradient", "random"} <= set(markdown(result, {}).replace(",", " ").split())
    assert [file.name for file in save(result, {}, tmp_path)] == ["study.json", "study.md", "study.png"]

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(study, "measure_log_odds", fail)
    assert run("a").rows == result.rows
    with pytest.raises(AssertionError, match="computed again"):
        run("b")


def test_a_gate_along_the_gradient_raises_the_log_odds_of_its_own_documents() -> None:
    model = factories.tiny_model("llama")
    layout = find_attention_layout(model)
    shared = self_check.load(model, layout.decoder)
    scoring = answers(24, 0)
    gradient = run_gradient(
        shared, layout, scoring, {"task": "made"}, site="post", batch_size=8, progress=lambda _: None
    )
    before = measure_log_odds(shared, scoring.documents).mean()
    step = 0.01 / np.abs(gradient.scores).max()
    with attach(model, Gate((1 + step * gradient.scores).astype(np.float32)), layout=layout):
        after = measure_log_odds(shared, scoring.documents).mean()
    assert after - before == pytest.approx(step * float((gradient.scores**2).sum()), rel=0.05)


def test_controls_keep_each_layers_scores() -> None:
    counts = {"select": 2, "shuffles": 2, "randoms": 1}
    directions = make_directions({"probe": scores()}, (3, 4), **counts)
    assert [one.name for one in directions if one.control_of is None] == [
        "probe (soft)", "probe (select)", "random 0 (soft)", "random 0 (select)",
    ]  # fmt: skip
    soft, shuffled = directions[0].values, directions[1].values
    assert np.allclose(np.sort(soft), np.sort(shuffled)) and not np.allclose(soft, shuffled)
    assert np.allclose(soft.mean(axis=1), 0)  # a probe's scores are centered
    (gradient,) = [
        one
        for one in make_directions({"g": scores(kind="gradient")}, (3, 4), **counts)
        if one.name == "g (soft)"
    ]
    assert np.allclose(gradient.values, scores().scores)  # a gradient's zero means something
    select = next(one.values for one in directions if one.name == "probe (select)")
    best = np.argsort(-scores().scores, axis=None)
    assert (select.ravel()[best[:2]] == 1).all() and (select.ravel()[best[-2:]] == -1).all()
    assert np.abs(select).sum() == 4
    with pytest.raises(GateError, match="12 heads"):
        make_directions({"probe": scores()}, (3, 4), select=7, shuffles=0, randoms=0)


def test_the_parts_of_a_split_share_no_cluster() -> None:
    scoring, test = split_documents(answers(20, 0), 0.4, seed=1)
    assert len(scoring.documents) == 8 and len(test.documents) == 12
    assert not set(scoring.clusters) & set(test.clusters)
    with pytest.raises(ProbeError, match="cannot be split"):
        split_documents(answers(2, 0), 0.4, seed=1)
