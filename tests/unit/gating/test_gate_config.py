"""Gates as users write them: arguments of either harness, defaults, mistakes, and what a results file says."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_models as factories

from truthgate_eval.errors import GateError, ScoresError
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate import attach, make_gate, random_gate
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.gating.selection import HeadSelection, random_selection_gate
from truthgate_eval.gating.shift import HeadShift

SCORES = TruthScores(np.random.default_rng(0).uniform(size=(3, 4)), metadata={"site": "post"})
RECOMMENDED = TruthScores(
    SCORES.scores, metadata={"recommended": {"lam": 2.5, "norm": "zscore", "site": "pre", "modality": "text"}}
)


def parse(**arguments: Any) -> GateConfig:
    return GateConfig.parse(arguments.pop("scores", SCORES), **arguments)


@pytest.mark.parametrize("lam", [0.3, "0.3", np.float32(0.3)])
def test_lam_is_a_number_or_text(lam: Any) -> None:
    assert parse(lam=lam).lam == pytest.approx(0.3)


@pytest.mark.parametrize("missing", [None, "None", ""])
def test_missing_arguments_are_none_or_text(missing: Any) -> None:
    config = parse(lam=1, norm=missing, site=missing, layers=missing, mode=missing)
    assert (config.norm, config.site, config.layers, config.mode) == (
        "centered",
        "post",
        None,
        "live",
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [(8, (8,)), ("8-10", (8, 9, 10)), ("1+8-9", (1, 8, 9)), ([8, 9], (8, 9)), ("3", (3,)), (["0-1"], (0, 1))],
)
def test_layers_are_parsed_in_every_form_that_a_harness_passes(value: Any, expected: tuple[int, ...]) -> None:
    assert parse(lam=1, layers=value).layers == expected


def test_the_recommended_gate_is_the_default() -> None:
    chosen = parse(scores=RECOMMENDED)
    assert (chosen.lam, chosen.norm, chosen.site) == (2.5, "zscore", "pre")
    assert parse(scores=RECOMMENDED, lam=1, norm="minmax", site="post").lam == 1


def test_a_recommendation_for_the_other_modality_is_not_used() -> None:
    config = parse(scores=RECOMMENDED, lam=0.3, modality="image")
    assert (config.norm, config.site) == ("minmax", "post")
    with pytest.raises(GateError, match="recommend no lam"):
        parse(scores=RECOMMENDED, modality="image")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lam": "abc"}, "lam=abc is not a number"),
        ({"lam": float("nan")}, "lam=nan is not a finite number"),
        ({"lam": "inf"}, "not a finite number"),
        ({"lam": 1, "norm": "max"}, "unknown norm 'max': expected one of minmax, centered, zscore, none"),
        ({"lam": 1, "site": "middle"}, "unknown site 'middle': expected one of post, pre"),
        ({"lam": 1, "mode": "hot"}, "unknown mode 'hot': expected one of live, folded"),
        ({"lam": 1, "layers": "9-8"}, "layers=9-8 is not a list of layers"),
        ({"lam": 1, "layers": "a"}, "layers=a is not a list of layers"),
        ({"scores": "random"}, "needs a seed, as in scores=random:1"),
        ({"scores": "random:"}, "needs a seed, as in scores=random:1"),
        ({"scores": "random:x"}, "needs a seed, as in scores=random:1"),
        ({"scores": "random7"}, "scores=random7: write the random gate as scores=random:7"),
        ({}, "recommend no lam"),
    ],
)
def test_every_mistake_is_one_line_that_says_what_is_expected(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(GateError, match=message) as caught:
        parse(**arguments)
    assert "\n" not in str(caught.value)


def test_scores_of_another_architecture_are_refused_with_both_shapes() -> None:
    config = parse(scores=TruthScores(np.ones((2, 4))), lam=1)
    with pytest.raises(ScoresError, match=r"2 layers x 4 heads, but tiny has 3 layers x 4 heads"):
        config.apply(factories.tiny_model("llama"), "tiny")


@pytest.mark.parametrize("mode", ["live", "folded"])
def test_apply_gates_a_model_as_the_gate_itself_does(mode: str) -> None:
    ours, expected = factories.tiny_model("llama"), factories.tiny_model("llama")
    handle = parse(lam=2, norm="minmax", site="pre", layers="0-1", mode=mode).apply(ours, "tiny")
    attach(expected, make_gate(SCORES, lam=2, norm="minmax", site="pre", layers=[0, 1]))
    assert (handle is None) == (mode == "folded")
    torch.testing.assert_close(
        ours(factories.prompts()).logits, expected(factories.prompts()).logits, atol=1e-5, rtol=1e-4
    )


def test_the_random_gate_needs_no_scores() -> None:
    ours, expected = factories.tiny_model("llama"), factories.tiny_model("llama")
    parse(scores="random:7").apply(ours, "tiny")
    attach(expected, random_gate((3, 4), seed=7))
    assert torch.equal(ours(factories.prompts()).logits, expected(factories.prompts()).logits)


@pytest.mark.parametrize("none", ["none", "None", None])
def test_scores_none_attaches_no_gate(none: Any) -> None:
    model = factories.tiny_model("llama")
    assert parse(scores=none).apply(model, "tiny") is None
    assert not any(module._forward_hooks for module in model.modules())


def test_a_gate_at_another_site_than_probed_gives_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        parse(lam=1, site="pre").apply(factories.tiny_model("llama"), "tiny")
    assert [r.message for r in caplog.records] == ["the scores were probed at site=post and gate site=pre"]


def test_describe_gives_the_provenance_of_the_gate() -> None:
    record = parse(lam=2, norm="minmax", layers="0-1").describe()
    assert record["sha256"] == SCORES.fingerprint and record["layers"] == [0, 1]
    assert (record["lam"], record["norm"], record["site"], record["mode"]) == (2.0, "minmax", "post", "live")
    assert set(parse(scores="none").describe()) == {"kind", "scores", "truthgate_eval"}


@pytest.mark.parametrize("name", ["random-halueval.npz", "random.npz", "random7.npz"])
def test_a_file_whose_name_starts_with_random_is_a_file_of_scores(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    SCORES.save(tmp_path / name)
    config = parse(scores=name, lam=1)
    assert (config.kind, config.seed) == ("scores", None)
    assert config.scores is not None and config.scores.fingerprint == SCORES.fingerprint


@pytest.mark.parametrize(
    ("scores", "kind"),
    [("none", "vanilla"), ("random:7", "random"), (SCORES, "scores"), ("Random.npz", "scores")],
)
def test_the_kind_of_gate_is_said_in_the_results_file(
    scores: Any, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    SCORES.save(tmp_path / "Random.npz")
    config = parse(scores=scores, **({"lam": 1} if kind == "scores" else {}))
    assert config.kind == kind and config.describe()["kind"] == kind
    assert config.is_vanilla == (kind == "vanilla")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"norm": "max"}, "unknown norm 'max'"),
        ({"site": "middle"}, "unknown site 'middle'"),
        ({"mode": "hot"}, "unknown mode 'hot'"),
        ({"lam": float("inf")}, "not a finite number"),
        ({"layers": (-1,)}, "is not a list of layers"),
        ({"seed": 1}, "either truth scores or the seed of a random gate"),
    ],
)
def test_a_config_made_without_parse_is_validated(values: dict[str, Any], message: str) -> None:
    with pytest.raises(GateError, match=message):
        GateConfig("a.npz", SCORES, **values)


def with_directions(**metadata: Any) -> TruthScores:
    rng = np.random.default_rng(1)
    return TruthScores(
        SCORES.scores,
        probe_weight=rng.normal(size=(3, 4, 8)),
        activation_std=rng.uniform(size=(3, 4)),
        metadata={"site": "pre", **metadata},
    )


ACTION_ARGUMENTS: list[tuple[dict[str, Any], list[str]]] = [
    ({"action": "soft", "lam": "2", "norm": "minmax"}, ["post", "pre"]),
    ({"action": "select", "top": "2", "bottom": 3, "in": "1.5", "out": 0.25}, ["post", "pre"]),
    ({"action": "select", "top": 1, "bottom": 1, "per": "layer", "layers": "0-1"}, ["post", "pre"]),
    ({"action": "shift", "top": "5", "alpha": "3"}, ["pre"]),
]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("arguments", "site"), [(arguments, site) for arguments, sites in ACTION_ARGUMENTS for site in sites]
)
def test_every_action_gives_the_same_model_live_and_folded(
    arguments: dict[str, Any], site: str, name: str
) -> None:
    vanilla, live, folded = (factories.tiny_model(name) for _ in range(3))
    config = parse(scores=with_directions(), site=site, **arguments)
    assert config.action == arguments["action"]
    assert config.apply(live, "tiny") is not None
    assert (
        parse(scores=with_directions(), site=site, mode="folded", **arguments).apply(folded, "tiny") is None
    )
    expected = live(factories.prompts()).logits
    assert not torch.allclose(expected, vanilla(factories.prompts()).logits, atol=1e-2)
    torch.testing.assert_close(folded(factories.prompts()).logits, expected, atol=1e-5, rtol=1e-4)


def test_a_selection_has_the_factors_that_were_asked_for() -> None:
    layout = find_attention_layout(factories.tiny_model("llama"))
    gate = parse(**{"action": "select", "top": 2, "bottom": 3, "in": 1.5, "out": 0.25}).gate(layout, "tiny")
    order = np.argsort(SCORES.scores.ravel())
    assert set(np.flatnonzero(gate.values == 1.5)) == set(order[-2:])
    assert set(np.flatnonzero(gate.values == 0.25)) == set(order[:3])
    random = parse(scores="random:7", action="select", top=2, bottom=3).gate(layout, "tiny")
    assert ((random.values == 2).sum(), (random.values == 0).sum()) == (2, 3)
    expected = random_selection_gate((3, 4), HeadSelection(2, 3), seed=7)
    assert np.array_equal(random.values, expected.values)


def test_a_shift_is_at_the_input_of_the_projection_whatever_soft_gates_recommend() -> None:
    recommended = {"recommended": {"lam": 2.5, "norm": "zscore", "site": "post", "layers": "1"}}
    config = parse(scores=with_directions(**recommended), action="shift", top=2, alpha=1)
    assert (config.site, config.layers, config.action) == ("pre", None, "shift")
    assert parse(scores=with_directions(**recommended)).layers == (1,)


def test_a_recommendation_of_an_action_holds_for_that_action() -> None:
    recommended = {"action": "select", "top": 3, "bottom": 2, "in": 3, "out": 0.5, "site": "pre"}
    scores = with_directions(recommended=recommended)
    assert parse(scores=scores).selection == HeadSelection(3, 2, 3.0, 0.5)
    assert parse(scores=scores, top=1).selection == HeadSelection(1, 2, 3.0, 0.5)
    assert parse(scores=scores).site == "pre"
    assert parse(scores=scores, action="shift", top=1, alpha=2).shift == HeadShift(1, 2.0)
    with pytest.raises(GateError, match="recommend no lam"):
        parse(scores=scores, action="soft")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"action": "soften"}, "unknown action 'soften': expected one of soft, select, shift"),
        ({"action": "select", "direction": "probe"}, "action=select takes no direction: it takes lam, top, bottom"),
        ({"action": "select", "norm": "minmax"}, "action=select takes no norm"),
        ({"action": "select", "alpha": 1}, "action=select takes no alpha"),
        ({"action": "shift", "lam": 1}, "action=shift takes no lam: it takes top, alpha, direction"),
        ({"action": "shift", "bottom": 1}, "action=shift takes no bottom"),
        ({"lam": 1, "top": 2}, "action=soft takes no top: it takes lam, norm"),
        ({"lam": 1, "in": 2}, "action=soft takes no in"),
        ({"scores": "random:1", "direction": "probe"}, "action=soft takes no direction"),
        ({"action": "select", "top": "many"}, "top=many is not a number of heads"),
        ({"action": "select", "top": -1}, "top=-1 is not a number of heads"),
        ({"action": "select", "bottom": 2.5}, "bottom=2.5 is not a number of heads"),
        ({"action": "select", "in": "x"}, "in=x is not a number"),
        ({"action": "select", "out": "nan"}, "out=nan is not a finite number"),
        ({"action": "select", "per": "head"}, "unknown per 'head'"),
        ({"action": "shift", "alpha": 1}, "action=shift needs top: ITI has top=48"),
        ({"action": "shift", "top": 2}, "action=shift needs alpha: ITI has alpha=15"),
        ({"action": "shift", "top": 2, "alpha": "strong"}, "alpha=strong is not a number"),
        ({"action": "shift", "top": 2, "alpha": 1, "site": "post"}, "site=pre; got site=post"),
        ({"action": "shift", "top": 2, "alpha": 1, "direction": "up"}, "unknown direction 'up'"),
        ({"action": "shift", "top": 2, "alpha": 1, "scores": "random:1"}, "use scores=shuffled:FILE:SEED"),
        ({"lam": 1, "positions": "first"}, "unknown positions 'first': expected one of all, last, generated"),
        ({"lam": 1, "positions": "last", "mode": "folded"}, "positions=last cannot be folded into weights"),
        ({"lam": 1, "lambda": 2}, "unknown argument 'lambda' of a gate: expected scores, lam, norm"),
        ({"scores": "shuffled:a.npz"}, "shuffled scores need a file and a seed"),
    ],
)  # fmt: skip
def test_arguments_that_exclude_each_other_are_refused_in_one_line(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(GateError, match=message) as caught:
        parse(**arguments)
    assert "\n" not in str(caught.value)


def test_a_config_of_two_actions_is_refused() -> None:
    with pytest.raises(GateError, match="selects heads or shifts them, not both"):
        GateConfig("a", SCORES, site="pre", selection=HeadSelection(), shift=HeadShift(1, 1.0))


@pytest.mark.parametrize("missing", [None, "None", ""])
def test_missing_settings_of_an_action_are_none_or_text(missing: Any) -> None:
    names = ("top", "bottom", "in", "out", "per", "positions", "site", "alpha", "direction", "lam")
    config = parse(action="select", **dict.fromkeys(names, missing))
    assert config.selection == HeadSelection() and config.positions == "all"


def test_the_results_file_says_the_action_and_its_settings() -> None:
    soft = parse(lam=2, norm="minmax", positions="last").describe()
    assert (soft["action"], soft["positions"], soft["lam"], soft["norm"]) == ("soft", "last", 2.0, "minmax")
    before = {"kind", "scores", "truthgate_eval", "site", "mode", "layers", "lam", "norm", "sha256", "probed"}
    assert before <= soft.keys() and "top" not in soft
    select = parse(**{"action": "select", "top": 2, "bottom": 3, "in": 1.5, "per": "layer"}).describe()
    assert {name: select[name] for name in ("action", "top", "bottom", "in", "out", "per")} == {
        "action": "select", "top": 2, "bottom": 3, "in": 1.5, "out": 0.0, "per": "layer",
    }  # fmt: skip
    assert "lam" not in select and select["sha256"] == SCORES.fingerprint
    shift = parse(scores=with_directions(), action="shift", top=2, alpha=15).describe()
    assert {name: shift[name] for name in ("action", "top", "alpha", "direction", "site")} == {
        "action": "shift", "top": 2, "alpha": 15.0, "direction": "probe", "site": "pre",
    }  # fmt: skip
    random = parse(scores="random:1", action="select", top=2, bottom=2).describe()
    assert (random["kind"], random["action"], random["top"]) == ("random", "select", 2)
    assert json.loads(json.dumps(shift)) == shift
    vanilla = parse(scores="none", positions="last", action="select")
    assert set(vanilla.describe()) == {"kind", "scores", "truthgate_eval"} and vanilla.positions == "all"


def test_shuffled_scores_are_a_kind_of_their_own(tmp_path: Path) -> None:
    file = RECOMMENDED.save(tmp_path / "a.npz")
    config = parse(scores=f"shuffled:{file}:3")
    assert (config.kind, config.lam, config.norm, config.seed) == ("shuffled", 2.5, "zscore", None)
    assert config.describe()["kind"] == "shuffled" and config.describe()["scores"] == f"shuffled:{file}:3"
    layout = find_attention_layout(factories.tiny_model("llama"))
    shuffled, own = config.gate(layout, "tiny"), parse(scores=RECOMMENDED).gate(layout, "tiny")
    assert not np.array_equal(shuffled.values, own.values)
    np.testing.assert_allclose(np.sort(shuffled.values, axis=1), np.sort(own.values, axis=1), rtol=1e-5)
    selected = parse(scores=f"shuffled:{file}:3", action="select", top=2, bottom=2).gate(layout, "tiny")
    assert (selected.values == 2).sum() == 2


def test_the_gate_of_a_config_has_its_positions() -> None:
    layout = find_attention_layout(factories.tiny_model("llama"))
    assert parse(lam=1, positions="generated").gate(layout, "tiny").positions == "generated"
    shift = parse(scores=with_directions(), action="shift", top=2, alpha=1, positions="last")
    gate = shift.gate(layout, "tiny")
    assert gate.positions == "last" and gate.shift is not None
