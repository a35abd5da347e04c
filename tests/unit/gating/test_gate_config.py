from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_models as factories

from truthgate_eval.errors import GateError, ScoresError
from truthgate_eval.gating.gate import attach, make_gate, random_gate
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.scores import TruthScores

SCORES = TruthScores(np.random.default_rng(0).uniform(size=(3, 4)), metadata={"site": "post"})
RECOMMENDED = TruthScores(
    SCORES.scores, metadata={"recommended": {"lam": 2.5, "norm": "zscore", "site": "pre", "modality": "text"}}
)


def read(**arguments: Any) -> GateConfig:
    return GateConfig.parse(arguments.pop("scores", SCORES), **arguments)


@pytest.mark.parametrize("lam", [0.3, "0.3", np.float32(0.3)])
def test_numbers_come_as_numbers_or_text(lam: Any) -> None:
    assert read(lam=lam).lam == pytest.approx(0.3)


@pytest.mark.parametrize("missing", [None, "None", ""])
def test_missing_values_come_as_none_or_text(missing: Any) -> None:
    settings = read(lam=1, norm=missing, site=missing, layers=missing, mode=missing)
    assert (settings.norm, settings.site, settings.layers, settings.mode) == (
        "centered",
        "post",
        None,
        "live",
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [(8, (8,)), ("8-10", (8, 9, 10)), ("1+8-9", (1, 8, 9)), ([8, 9], (8, 9)), ("3", (3,)), (["0-1"], (0, 1))],
)
def test_layers_come_in_every_form_the_hosts_give(value: Any, expected: tuple[int, ...]) -> None:
    assert read(lam=1, layers=value).layers == expected


def test_what_the_artifact_recommends_is_the_default() -> None:
    chosen = read(scores=RECOMMENDED)
    assert (chosen.lam, chosen.norm, chosen.site) == (2.5, "zscore", "pre")
    assert read(scores=RECOMMENDED, lam=1, norm="minmax", site="post").lam == 1


def test_a_recommendation_of_the_other_modality_does_not_count() -> None:
    settings = read(scores=RECOMMENDED, lam=0.3, modality="image")
    assert (settings.norm, settings.site) == ("minmax", "post")
    with pytest.raises(GateError, match="recommend no lam"):
        read(scores=RECOMMENDED, modality="image")


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
        ({}, "recommend no lam"),
    ],
)
def test_every_mistake_is_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(GateError, match=message) as caught:
        read(**arguments)
    assert "\n" not in str(caught.value)


def test_scores_of_another_architecture_are_refused_with_both_shapes() -> None:
    settings = read(scores=TruthScores(np.ones((2, 4))), lam=1)
    with pytest.raises(ScoresError, match=r"2 layers x 4 heads, but tiny has 3 layers x 4 heads"):
        settings.apply(factories.tiny_model("llama"), "tiny")


@pytest.mark.parametrize("mode", ["live", "folded"])
def test_settings_gate_a_model_as_the_gate_itself_does(mode: str) -> None:
    ours, expected = factories.tiny_model("llama"), factories.tiny_model("llama")
    handle = read(lam=2, norm="minmax", site="pre", layers="0-1", mode=mode).apply(ours, "tiny")
    attach(expected, make_gate(SCORES, lam=2, norm="minmax", site="pre", layers=[0, 1]))
    assert (handle is None) == (mode == "folded")
    torch.testing.assert_close(
        ours(factories.prompts()).logits, expected(factories.prompts()).logits, atol=1e-5, rtol=1e-4
    )


def test_the_random_gate_needs_no_scores() -> None:
    ours, expected = factories.tiny_model("llama"), factories.tiny_model("llama")
    read(scores="random:7").apply(ours, "tiny")
    attach(expected, random_gate((3, 4), seed=7))
    assert torch.equal(ours(factories.prompts()).logits, expected(factories.prompts()).logits)


@pytest.mark.parametrize("none", ["none", "None", None])
def test_scores_none_attaches_nothing(none: Any) -> None:
    model = factories.tiny_model("llama")
    assert read(scores=none).apply(model, "tiny") is None
    assert not any(module._forward_hooks for module in model.modules())


def test_a_gate_at_another_site_than_probed_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read(lam=1, site="pre").apply(factories.tiny_model("llama"), "tiny")
    assert [r.message for r in caplog.records] == ["the scores were probed at site=post and gate site=pre"]


def test_provenance_says_what_was_done() -> None:
    record = read(lam=2, norm="minmax", layers="0-1").describe()
    assert record["sha256"] == SCORES.fingerprint and record["layers"] == [0, 1]
    assert (record["lam"], record["norm"], record["site"], record["mode"]) == (2.0, "minmax", "post", "live")
    assert set(read(scores="none").describe()) == {"scores", "truthgate_eval"}
