from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_models as factories

from truthgate_eval.attribution import study_rows
from truthgate_eval.attribution.evaluation import GateEvaluation, measure_log_odds
from truthgate_eval.attribution.log_odds import AnswerDocument
from truthgate_eval.attribution.run import AnswerSet, run_gradient, split_documents
from truthgate_eval.attribution.study import StudyResult, run_study
from truthgate_eval.attribution.study_documents import StudyDocuments
from truthgate_eval.attribution.study_gates import Direction, StudyGates, make_directions
from truthgate_eval.attribution.study_report import markdown, save, table_rows
from truthgate_eval.attribution.study_rows import StudyRows
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
    return AnswerSet(documents, gold, [f"{seed}-{i // 2}" for i in range(count)])


def scores(seed: int = 0, kind: str = "accuracy") -> TruthScores:
    return TruthScores(np.random.default_rng(seed).normal(size=(3, 4)), metadata={"kind": kind})


@dataclasses.dataclass
class Tiny:
    """A tiny model with the documents of a study."""

    documents: StudyDocuments

    def __post_init__(self) -> None:
        self.model = factories.tiny_model("llama")
        self.layout = find_attention_layout(self.model)
        self.shared = self_check.load(self.model, self.layout.decoder)

    def rows(self, folder: Path, key: str = "a") -> StudyRows:
        return StudyRows(self.shared, self.layout, self.documents, folder=folder, key={"name": key})

    def gradient(self) -> TruthScores:
        return run_gradient(
            self.shared, self.layout, self.documents.scoring, {"task": "made"}, site="post", batch_size=8,
            progress=lambda _: None,
        )  # fmt: skip

    def study(
        self, folder: Path, sources: dict[str, TruthScores], targets: list[float], key: str = "a"
    ) -> StudyResult:
        gates = StudyGates(select=2, shuffles=1, randoms=1)
        directions = make_directions(sources, self.layout.shape, gates)
        return run_study(self.rows(folder, key), directions, targets)


@pytest.fixture
def tiny() -> Tiny:
    return Tiny(StudyDocuments(answers(24, 0), answers(20, 1), answers(16, 2)))


def named(result: StudyResult, source: str, action: str) -> dict[str, Any]:
    (row,) = [row for row in result.rows if (row["source"], row["action"]) == (source, action)]
    return row


def test_rows_have_the_same_strength_and_are_kept(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = {"gradient": tiny.gradient()}
    result = tiny.study(tmp_path, sources, [0.01])
    assert [(row["source"], row["action"]) for row in result.rows] == [
        ("gradient", "soft"), ("gradient, shuffled 0", "soft"), ("gradient", "select"),
        ("gradient, shuffled 0", "select"), ("random 0", "soft"), ("random 0", "select"),
        ("yes offset up", "offset"), ("yes offset down", "offset"),
    ]  # fmt: skip
    for row in result.rows:
        assert row["divergence"] == pytest.approx(0.01, rel=0.011)
    row = named(result, "gradient", "soft")
    gate = Gate((1 + row["strength"] * sources["gradient"].scores).astype(np.float32), "post")
    test = tiny.documents.test
    vanilla = measure_log_odds(tiny.shared, test.documents)
    with attach(tiny.model, gate, layout=tiny.layout):
        own = measure_log_odds(tiny.shared, test.documents)
    expected = np.logaddexp(0, -own).mean() - np.logaddexp(0, -vanilla).mean()
    assert row["difference"]["log_loss"]["mean"] == pytest.approx(expected, abs=1e-5)
    assert row["log_odds"]["test"]["mean"] == pytest.approx((own - vanilla).mean(), abs=1e-4)
    assert row["log_odds"]["scoring"]["mean"] > 0  # it is their derivative

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(study_rows, "measure_log_odds", fail)
    assert tiny.study(tmp_path, sources, [0.01]).rows == result.rows
    with pytest.raises(AssertionError, match="computed again"):
        tiny.study(tmp_path, sources, [0.01], key="b")


def test_of_several_strengths_the_one_that_is_best_on_other_documents_is_evaluated(
    tiny: Tiny, tmp_path: Path
) -> None:
    assert tiny.documents.choosing is not None
    helps = Tiny(dataclasses.replace(tiny.documents, scoring=tiny.documents.choosing)).gradient()
    sources = {"helps": helps, "hurts": dataclasses.replace(helps, scores=-helps.scores)}
    result = tiny.study(tmp_path, sources, [0.001, 0.02])
    rows = tiny.rows(tmp_path)
    directions = make_directions(sources, tiny.layout.shape, StudyGates(select=2, shuffles=1, randoms=1))
    for direction in directions:
        if direction.is_control:
            continue
        losses = {
            target: rows.gated(direction, rows.strength(direction, target)[0], "choosing").losses().mean()
            for target in (0.001, 0.02)
        }
        best = min(losses, key=lambda target: losses[target])
        assert named(result, direction.source, direction.action)["target"] == best
        assert named(result, f"{direction.source}, shuffled 0", direction.action)["target"] == best
    assert [named(result, name, "soft")["target"] for name in ("helps", "hurts")] == [0.02, 0.001]
    with pytest.raises(ProbeError, match="choose"):
        run_study(
            StudyRows(
                tiny.shared, tiny.layout, dataclasses.replace(tiny.documents, choosing=None),
                folder=tmp_path, key={},
            ),
            directions, [0.001, 0.02],
        )  # fmt: skip


def test_an_offset_moves_the_distribution_as_far_as_a_gate(tiny: Tiny, tmp_path: Path) -> None:
    rows = tiny.rows(tmp_path)
    for sign in (1, -1):
        found = rows.offset(0.02, sign)
        assert found is not None
        offset, reached, _, test = found
        assert offset * sign > 0 and reached == pytest.approx(0.02, rel=0.011)
        contexts = torch.tensor([own.sequences[0][:-1] for own in tiny.documents.scoring.documents])
        with torch.no_grad():
            before = torch.log_softmax(tiny.model(input_ids=contexts).logits[:, -1], -1)
        shifted = before.clone()
        shifted[:, YES] += offset
        shifted = torch.log_softmax(shifted, -1)
        divergence = (before.exp() * (before - shifted)).sum(-1).mean()
        assert float(divergence) == pytest.approx(reached, rel=1e-3)
        vanilla = rows.vanilla("test")
        assert test.auroc == vanilla.auroc
        signs = np.array([1 if own == "yes" else -1 for own in tiny.documents.test.strata])
        assert np.allclose(test.odds - vanilla.odds, signs * offset)


def test_a_gate_that_is_a_bias_towards_yes_is_called_one(tiny: Tiny, tmp_path: Path) -> None:
    """Planted: the answers under the gate are the vanilla model's with a constant on the logit of yes."""
    tilted = StudyDocuments(tiny.documents.scoring, answers(20, 1))
    signs = np.array([1 if own == "yes" else -1 for own in tilted.test.strata])
    noise = np.random.default_rng(0).normal(size=20)

    class Planted(StudyRows):
        def vanilla(self, part: str) -> GateEvaluation:
            odds = (2 + noise - 2.5 * signs) if part == "test" else np.zeros(24)
            own = self.documents.part(part)
            return GateEvaluation(odds, own.strata, own.clusters)

        def gated(self, direction: Direction, strength: float, part: str) -> GateEvaluation:
            return self.vanilla(part).with_offset(0.0 if direction.is_control else 2.5)

    rows = Planted(tiny.shared, tiny.layout, tilted, folder=tmp_path, key={})
    gates = StudyGates(("soft",), 2, 1, 1)
    result = run_study(rows, make_directions({"probe": scores()}, (3, 4), gates), [0.01])
    row = named(result, "probe", "soft")
    assert row["accuracy"] > result.vanilla["accuracy"] and row["auroc"] == result.vanilla["auroc"]
    assert row["conclusion"] == (
        "better than the vanilla model, but not once both have their best constant on yes"
    )


@pytest.mark.parametrize(("offset", "beaten"), [(2.0, False), (0.0, True)])
def test_a_gate_must_beat_a_constant_on_yes_of_its_divergence(
    tiny: Tiny, tmp_path: Path, offset: float, beaten: bool
) -> None:
    """Planted: a gate that knows a little more than the model, which a constant would help much more."""
    documents = StudyDocuments(tiny.documents.scoring, answers(20, 1))
    signs = np.array([1 if own == "yes" else -1 for own in documents.test.strata])
    noise = np.random.default_rng(0).normal(size=20)

    class Planted(StudyRows):
        def vanilla(self, part: str) -> GateEvaluation:
            own = self.documents.part(part)
            odds = 1 + noise - 2 * signs if part == "test" else np.zeros(24)
            return GateEvaluation(odds, own.strata, own.clusters)

        def gated(self, direction: Direction, strength: float, part: str) -> GateEvaluation:
            vanilla = self.vanilla(part)
            raised = 0.0 if direction.is_control else 0.5
            return dataclasses.replace(vanilla, odds=vanilla.odds + raised)

        def offset(self, target: float, sign: int) -> Any:
            return offset, target, self.vanilla("scoring"), self.vanilla("test").with_offset(sign * offset)

    rows = Planted(tiny.shared, tiny.layout, documents, folder=tmp_path, key={})
    result = run_study(
        rows, make_directions({"probe": scores()}, (3, 4), StudyGates(("soft",), 2, 1, 1)), [0.01]
    )
    row = named(result, "probe", "soft")
    assert row["difference"]["log_loss_offset"]["high"] < 0  # it is no constant
    up = named(result, "yes offset up", "offset")
    assert (up["log_loss"] < row["log_loss"]) == (not beaten)
    rest = ", but not than yes offset up of equal strength"
    if beaten:
        rest = " and than every control of equal strength"
    assert row["conclusion"] == f"better than the vanilla model{rest}"


@pytest.mark.parametrize(
    ("control", "rest"),
    [(1.0, ", but not than probe, shuffled 0, random 0"), (0.0, " and than every control")],
)
def test_a_gate_must_beat_its_controls(tiny: Tiny, tmp_path: Path, control: float, rest: str) -> None:
    """Planted: the gate raises the log-odds of the right answers by about 1, its controls by `control`."""

    class Planted(StudyRows):
        def vanilla(self, part: str) -> GateEvaluation:
            own = self.documents.part(part)
            odds = np.random.default_rng(0).normal(size=len(own.documents))
            return GateEvaluation(odds, [None] * len(odds), own.clusters)

        def gated(self, direction: Direction, strength: float, part: str) -> GateEvaluation:
            vanilla = self.vanilla(part)
            raised = control if direction.is_control else 1.0
            return dataclasses.replace(vanilla, odds=vanilla.odds + raised * (1 + 0.01 * vanilla.odds))

    rows = Planted(tiny.shared, tiny.layout, tiny.documents, folder=tmp_path, key={})
    gates = StudyGates(("soft",), 2, 1, 1)
    result = run_study(rows, make_directions({"probe": scores()}, (3, 4), gates), [0.01])
    conclusion = named(result, "probe", "soft")["conclusion"]
    assert conclusion == f"better than the vanilla model{rest} of equal strength"


def test_a_gate_that_never_left_one_has_no_row(tiny: Tiny, tmp_path: Path) -> None:
    unmoved = TruthScores(np.zeros((3, 4)), metadata={"kind": "learned"})
    gates = StudyGates(("soft",), 2, 1, 0)
    directions = make_directions({"learned": unmoved, "probe": scores()}, (3, 4), gates)
    result = run_study(tiny.rows(tmp_path), directions, [0.01])
    assert {row["source"] for row in result.rows if row["action"] == "soft"} == {"probe", "probe, shuffled 0"}
    assert "learned" in result.empty


def test_a_learned_gate_is_also_evaluated_as_it_was_fitted(tiny: Tiny, tmp_path: Path) -> None:
    learned = TruthScores(0.05 * scores().scores, metadata={"kind": "learned"})
    result = tiny.study(tmp_path, {"learned": learned}, [0.01])
    row = named(result, "learned, as fitted", "soft")
    assert row["strength"] == 1.0 and row["target"] == 0.0
    with attach(tiny.model, Gate(1 + learned.scores), layout=tiny.layout):
        own = measure_log_odds(tiny.shared, tiny.documents.test.documents)
    assert row["log_loss"] == pytest.approx(np.logaddexp(0, -own).mean(), abs=1e-6)


def test_files_say_what_was_compared(tiny: Tiny, tmp_path: Path) -> None:
    result = tiny.study(tmp_path, {"gradient": tiny.gradient()}, [0.01])
    result.reliability, result.correlations = {"gradient": {"within": 0.81}}, {"gradient": {"gradient": 1.0}}
    page = markdown({"tiny": result, "other": result}, {"tasks": "made"})
    assert "## tiny" in page and "## other" in page and "(0.81)" in page and "* tasks: made" in page
    assert len(table_rows(result)) == len(result.rows) + 1
    written = save({"tiny": result, "other": result}, {}, tmp_path)
    assert [file.name for file in written] == ["study.json", "study.md", "study.png"]
    assert written[2].read_bytes().startswith(b"\x89PNG")


def test_a_gate_along_the_gradient_raises_the_log_odds_of_its_own_documents(tiny: Tiny) -> None:
    scoring, gradient = tiny.documents.scoring, tiny.gradient()
    before = measure_log_odds(tiny.shared, scoring.documents).mean()
    step = 0.01 / np.abs(gradient.scores).max()
    with attach(tiny.model, Gate((1 + step * gradient.scores).astype(np.float32)), layout=tiny.layout):
        after = measure_log_odds(tiny.shared, scoring.documents).mean()
    assert after - before == pytest.approx(step * float((gradient.scores**2).sum()), rel=0.05)


def values(direction: Direction) -> Any:
    return direction.gate(1.0).values - 1


def test_controls_keep_each_layers_scores() -> None:
    gates = StudyGates(select=2, shuffles=2, randoms=1)
    directions = make_directions({"probe": scores()}, (3, 4), gates)
    assert [(one.source, one.action) for one in directions if one.control_of is None] == [
        ("probe", "soft"), ("probe", "select"), ("random 0", "soft"), ("random 0", "select"),
    ]  # fmt: skip
    soft, shuffled = values(directions[0]), values(directions[1])
    assert np.allclose(np.sort(soft), np.sort(shuffled)) and not np.allclose(soft, shuffled)
    assert np.allclose(soft.mean(axis=1), 0, atol=1e-6)  # a probe's scores are centered
    gradient = make_directions({"g": scores(kind="gradient")}, (3, 4), gates)[0]
    assert np.allclose(values(gradient), scores().scores, atol=1e-6)  # a gradient's zero means something
    select = next(values(one) for one in directions if (one.source, one.action) == ("probe", "select"))
    best = np.argsort(-scores().scores, axis=None)
    assert (select.ravel()[best[:2]] == 1).all() and (select.ravel()[best[-2:]] == -1).all()
    assert np.abs(select).sum() == 4
    with pytest.raises(GateError, match="12 heads"):
        make_directions({"probe": scores()}, (3, 4), dataclasses.replace(gates, select=7))[0]


def test_shift_needs_a_probe_in_front_of_the_projection() -> None:
    rng = np.random.default_rng(0)
    probed = TruthScores(
        rng.normal(size=(3, 4)), probe_weight=rng.normal(size=(3, 4, 8)), activation_std=np.ones((3, 4)),
        metadata={"kind": "accuracy", "site": "pre"},
    )  # fmt: skip
    sources = {"probe": probed, "gradient": scores(kind="gradient")}
    gates = StudyGates(("soft", "shift"), 2, 1, 1, site="pre")
    found = [(one.source, one.action) for one in make_directions(sources, (3, 4), gates)]
    assert ("probe", "shift") in found and ("probe, shuffled 0", "shift") in found
    assert not {("gradient", "shift"), ("random 0", "shift")} & set(found)
    (shift,) = [
        one
        for one in make_directions(sources, (3, 4), gates)
        if (one.source, one.action) == ("probe", "shift")
    ]
    added = shift.gate(3.0).shift
    assert added is not None and np.allclose(np.linalg.norm(added, axis=-1).max(), 3.0, atol=1e-5)


def test_the_parts_of_a_split_share_no_cluster() -> None:
    scoring, choosing, test = split_documents(answers(40, 0), [0.4, 0.2], seed=1)
    assert [len(part.documents) for part in (scoring, choosing, test)] == [16, 8, 16]
    clusters = [set(part.clusters) for part in (scoring, choosing, test)]
    assert not clusters[0] & clusters[1] and not clusters[1] & clusters[2] and not clusters[0] & clusters[2]
    with pytest.raises(ProbeError, match="cannot be split"):
        split_documents(answers(2, 0), [0.4], seed=1)
