"""Strengths given as a divergence: how they are written, what is refused, and that the number found has it."""

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
from truthgate_eval.gating.equal_strength import find_equal_strength
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.gating.yes_offset import add_yes_offset, yes_tokens
from truthgate_eval.inference import self_check
from truthgate_eval.inference.next_token_divergence import Divergence, NextTokenDivergence

RNG = np.random.default_rng(0)
SCORES = TruthScores(
    RNG.uniform(size=(3, 4)), probe_weight=RNG.normal(size=(3, 4, 8)), activation_std=RNG.uniform(1, 2, (3, 4)),
    metadata={"site": "pre"},
)  # fmt: skip
PROMPTS = np.random.default_rng(1).integers(3, 90, (30, 6)).tolist()
GATES: dict[str, dict[str, Any]] = {
    "soft": {"scores": SCORES, "lam": "kl:0.03", "site": "pre"},
    "select": {"scores": SCORES, "lam": "kl:0.03", "action": "select", "top": 2, "bottom": 2, "site": "pre"},
    "shift": {"scores": SCORES, "alpha": "kl:0.03", "action": "shift", "top": 4},
    "random": {"scores": "random:3", "lam": "kl:0.03"},
    "random selection": {"scores": "random:3", "lam": "kl:0.03", "action": "select", "top": 2, "bottom": 2},
    "last": {"scores": SCORES, "lam": "kl:0.03", "positions": "last", "site": "pre"},
}


def parse(**arguments: Any) -> GateConfig:
    return GateConfig.parse(arguments.pop("scores", SCORES), **arguments)


def distributions(model: Any) -> torch.Tensor:
    """Each prompt by itself, float64."""
    with torch.no_grad():
        rows = [model(input_ids=torch.tensor([prompt])).logits[0, -1] for prompt in PROMPTS]
    return torch.stack(rows).double().log_softmax(-1)


def kl(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.exp() * (one - other)).sum(-1).mean())


def measure(model: Any, config: GateConfig) -> Divergence:
    if config.positions != "all":  # which no shared prefix allows
        return Divergence(lambda: distributions(model).float())
    return NextTokenDivergence(self_check.load(model), PROMPTS)


@pytest.mark.parametrize("name", GATES)
def test_the_strength_that_is_found_has_the_divergence_of_a_from_scratch_computation(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = factories.tiny_model("llama")
    config, vanilla = parse(**GATES[name]), distributions(model)
    assert config.is_pending and config.apply(model, "tiny") is None
    assert torch.equal(distributions(model), vanilla)
    divergence = measure(model, config)
    with caplog.at_level(logging.INFO, "truthgate_eval.gating.equal_strength"):
        found = find_equal_strength(config, model, "tiny", divergence, tokenizer=None)
    assert torch.equal(distributions(model), vanilla)  # nothing stays on the model
    assert not found.is_pending and found.apply(model, "tiny") is not None
    assert kl(vanilla, distributions(model)) == pytest.approx(0.03, rel=0.012)
    described = json.loads(json.dumps(found.describe()))
    argument = "alpha" if name == "shift" else "lam"
    after = distributions(model)
    each = (vanilla.exp() * (vanilla - after)).sum(-1).numpy()
    assert described[argument] > 0 and described["strength"] == {
        "argument": argument, "target": 0.03, "reached": pytest.approx(0.03, rel=0.01),
        "stderr": pytest.approx(each.std(ddof=1) / len(each) ** 0.5, rel=0.01), "prompts": len(PROMPTS),
    }  # fmt: skip
    line, *warning = [record.message for record in caplog.records]
    assert line.startswith(f"{argument}=kl:0.03: {argument}={described[argument]:.6g} moves")
    # So many prompts make 1.96 standard errors of their mean 5 % of it.
    needed = (1.96 * each.std(ddof=1) / (0.05 * each.mean())) ** 2
    assert bool(warning) == (needed > len(PROMPTS))
    assert not warning or float(warning[0].split("kl_prompts=")[1].split()[0]) == pytest.approx(
        needed, rel=0.02
    )


@pytest.mark.parametrize("name", [name for name in GATES if name != "last"])
def test_the_number_that_was_found_makes_the_same_gate_in_another_run(name: str) -> None:
    model, again, folded = (factories.tiny_model("llama") for _ in range(3))
    config = parse(**GATES[name])
    found = find_equal_strength(config, model, "tiny", measure(model, config), tokenizer=None)
    argument = "alpha" if name == "shift" else "lam"
    number = found.describe()[argument]
    found.apply(model, "tiny")
    parse(**{**GATES[name], argument: number}).apply(again, "tiny")
    assert torch.equal(distributions(model), distributions(again))
    assert parse(**{**GATES[name], argument: number, "mode": "folded"}).apply(folded, "tiny") is None
    torch.testing.assert_close(distributions(folded), distributions(model), atol=1e-4, rtol=1e-4)


def test_shuffled_scores_get_a_strength_of_their_own(tmp_path: Path) -> None:
    file = SCORES.save(tmp_path / "a.npz")
    found = []
    for source in (str(file), f"shuffled:{file}:1"):
        model = factories.tiny_model("llama")
        config, vanilla = parse(scores=source, lam="kl:0.01"), distributions(model)
        found.append(find_equal_strength(config, model, "tiny", measure(model, config), tokenizer=None))
        found[-1].apply(model, "tiny")
        assert kl(vanilla, distributions(model)) == pytest.approx(0.01, rel=0.012)
    assert found[0].lam != pytest.approx(found[1].lam, rel=0.01) and found[1].kind == "shuffled"


def test_an_offset_of_yes_needs_no_pass_of_the_model_and_has_the_divergence() -> None:
    tokenizer = factories.tiny_tokenizer()
    tokenizer.add_tokens(["Yes", "No"])
    torch.manual_seed(0)
    import transformers as hf

    config = factories.CONFIGS["llama"]()
    config.vocab_size = len(tokenizer)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    gate, vanilla = GateConfig.parse("none", yes_offset="kl:0.02"), distributions(model)
    passes = []
    divergence = Divergence(lambda: passes.append(1) or distributions(model).float())  # type: ignore[func-returns-value]
    found = find_equal_strength(gate, model, "tiny", divergence, tokenizer=tokenizer)
    assert len(passes) == 1 and found.yes_offset > 0
    add_yes_offset(model, tokenizer, found.yes_offset)
    after = distributions(model)
    assert kl(vanilla, after) == pytest.approx(0.02, rel=0.012)
    tokens = yes_tokens(tokenizer)
    assert (after - vanilla)[:, tokens].min() > 0
    described = found.describe()
    assert described["yes_offset"] == found.yes_offset and described["strength"]["argument"] == "yes_offset"


def test_a_random_gate_is_scaled_by_lam() -> None:
    layout_shape = (3, 4)
    model = factories.tiny_model("llama")
    whole, half, own = (parse(scores="random:3", **lam) for lam in ({"lam": 1}, {"lam": 0.5}, {}))
    values = []
    for config in (whole, half, own):
        handle = config.apply(model, "tiny")
        assert handle is not None and handle.gate.values.shape == layout_shape
        values.append(handle.gate.values)
        handle.remove()
    np.testing.assert_allclose(values[1] - 1, (values[0] - 1) / 2, atol=1e-7)
    assert np.array_equal(values[0], values[2])
    assert half.describe()["lam"] == 0.5 and "lam" not in own.describe() and "norm" not in half.describe()


def test_a_selection_is_scaled_by_lam() -> None:
    model = factories.tiny_model("llama")
    config = parse(**{"action": "select", "top": 2, "bottom": 3, "in": 3, "out": 0, "lam": 0.25})
    handle = config.apply(model, "tiny")
    assert handle is not None
    assert sorted(handle.gate.values.ravel()) == [0.75] * 3 + [1] * 7 + [1.5] * 2
    assert config.describe()["lam"] == 0.25 and config.describe()["in"] == 3.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lam": "kl:"}, "expected kl: and a positive divergence in nats, such as kl:0.05"),
        ({"lam": "kl:-1"}, "expected kl: and a positive divergence"),
        ({"action": "shift", "top": 1, "alpha": "kl:x"}, "kl:x: expected kl: and a positive divergence"),
        ({"lam": "kl:0.1", "positions": "generated"}, "lam=kl:0.1: positions=generated changes nothing"),
        ({"lam": "kl:0.1", "scores": "none"}, "scores=none has no gate whose strength lam=kl:0.1 could be"),
        ({"lam": "kl:0.1", "yes_offset": "kl:0.1"}, "only one strength can be found"),
        ({"lam": "kl:0.1", "yes_offset": 1}, "lam=kl:0.1 and yes_offset=1 both change the model"),
        ({"lam": 1, "yes_offset": "kl:0.1"}, "yes_offset=kl:0.1 is the strength of an offset alone: use it with"),
        ({"scores": "random:1", "yes_offset": "kl:0.1"}, "use it with scores=none"),
        ({"lam": "kl:0.1", "kl_prompts": 0}, "kl_prompts=0: expected a positive number of prompts"),
        ({"lam": "kl:0.1", "kl_prompts": "many"}, "kl_prompts=many is not a number of prompts"),
        ({"lam": 1, "kl_prompts": 64}, "kl_prompts=64 says on how many prompts a strength is found"),
    ],
)  # fmt: skip
def test_what_has_no_strength_to_find_is_refused_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(GateError, match=message) as caught:
        parse(**arguments)
    assert "\n" not in str(caught.value)


def test_a_pending_gate_is_checked_when_the_model_is_loaded() -> None:
    model = factories.tiny_model("llama")
    with pytest.raises(ScoresError, match="2 layers x 4 heads, but tiny has 3"):
        parse(scores=TruthScores(np.ones((2, 4))), lam="kl:0.1").apply(model, "tiny")
    model.model.layers[1].self_attn.o_proj.to("meta")
    with pytest.raises(GateError, match=r"o_proj is offloaded, so a gate cannot be folded"):
        parse(lam="kl:0.1", mode="folded").apply(model, "tiny")


def test_scores_that_do_not_differ_have_no_strength() -> None:
    model = factories.tiny_model("llama")
    config = parse(scores=TruthScores(np.ones((3, 4))), lam="kl:0.1")
    with pytest.raises(GateError, match=r"lam=kl:0\.1: no strength changes the model by kl:0\.1"):
        find_equal_strength(config, model, "tiny", measure(model, config), tokenizer=None)
