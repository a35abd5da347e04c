"""Gates as users write them: arguments of either harness, defaults, mistakes, and what a results file says."""

from __future__ import annotations

import logging
from pathlib import Path
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
