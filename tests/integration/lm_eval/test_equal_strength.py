"""Strengths given as a divergence in lm-eval: found on the requests' prompts, the same in every order and mode."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lm_eval
import numpy as np
import pytest
import torch
import transformers as hf
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from truthgate_eval.errors import GateError
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.lm_eval import prompt_divergence
from truthgate_eval.harness.lm_eval.model import GatedHF

RNG = np.random.default_rng(0)
SCORES = TruthScores(
    RNG.uniform(size=(3, 4)), probe_weight=RNG.normal(size=(3, 4, 8)), activation_std=RNG.uniform(1, 2, (3, 4)),
    metadata={"model": "tiny", "site": "pre"},
)  # fmt: skip
CONTEXTS = [f"{'How much is ' * (n % 3)}{n} and {n * n}? " for n in range(24)]
ACTIONS = {
    "soft": "lam=kl:0.02,norm=centered,site=pre",
    "select": "lam=kl:0.02,action=select,top=2,bottom=2,site=pre",
    "shift": "alpha=kl:0.02,action=shift,top=4",
}


@pytest.fixture
def scores(tmp_path: Path) -> str:
    return str(SCORES.save(tmp_path / "scores.npz"))


def load(checkpoint: str, arguments: str, batch_size: int = 2) -> Any:
    """The model of `--model_args`, which lm-eval's command line gives as texts."""
    given = dict(pair.split("=") for pair in arguments.split(","))
    return GatedHF(checkpoint, device="cpu", batch_size=batch_size, **given)


def choices(contexts: Sequence[str] = CONTEXTS) -> list[Instance]:
    """Two answers to each context."""
    pairs = [(context, answer) for context in contexts for answer in (" yes", " no")]
    return [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]


def generations(contexts: Sequence[str] = CONTEXTS) -> list[Instance]:
    settings = {"until": ["\n\n\n"], "max_gen_toks": 3}
    return [Instance("generate_until", {}, (context, settings), n) for n, context in enumerate(contexts)]


def distributions(model: Any, lm: Any, contexts: Sequence[str]) -> torch.Tensor:
    """After each context, in a pass of its own."""
    with torch.no_grad():
        rows = [model(torch.tensor([lm.tok_encode(context)])).logits[0, -1] for context in contexts]
    return torch.stack(rows).double().log_softmax(-1)


def divergence(lm: Any, checkpoint: str, contexts: Sequence[str]) -> float:
    """From the vanilla checkpoint, from scratch."""
    vanilla = distributions(hf.AutoModelForCausalLM.from_pretrained(checkpoint), lm, contexts)
    now = distributions(lm.model, lm, contexts)
    return float((vanilla.exp() * (vanilla - now)).sum(-1).mean())


@pytest.mark.parametrize("engine", ["auto", "off"])
@pytest.mark.parametrize("mode", ["live", "folded"])
@pytest.mark.parametrize("action", ACTIONS)
def test_the_first_requests_gate_the_model_at_the_divergence(
    action: str, mode: str, engine: str, checkpoint: str, scores: str, caplog: pytest.LogCaptureFixture
) -> None:
    lm = load(checkpoint, f"scores={scores},{ACTIONS[action]},mode={mode},engine={engine}")
    # A log-likelihood's context loses its last space to the answer.
    contexts = [context.rstrip() for context in CONTEXTS]
    assert divergence(lm, checkpoint, contexts) == 0 and lm.gate_handle is None
    with caplog.at_level(logging.INFO, "truthgate_eval.gating.equal_strength"):
        answers = lm.loglikelihood(choices(), disable_tqdm=True)
    assert divergence(lm, checkpoint, contexts) == pytest.approx(0.02, rel=0.012)
    assert (lm.gate_handle is None) == (mode == "folded")
    gate = lm.get_model_info()["gate"]
    argument = "alpha" if action == "shift" else "lam"
    assert gate["strength"]["argument"] == argument and gate["strength"]["prompts"] == len(CONTEXTS)
    assert gate[argument] > 0 and gate["mode"] == mode
    assert len([r for r in caplog.records if "moves the next-token distribution" in r.message]) == 1
    # The number gives the same answers in a run that is told it.
    number = ACTIONS[action].replace("kl:0.02", repr(gate[argument]))
    told = load(checkpoint, f"scores={scores},{number},mode={mode},engine={engine}")
    assert told.loglikelihood(choices(), disable_tqdm=True) == answers
    plain = load(checkpoint, "scores=none").loglikelihood(choices(), disable_tqdm=True)
    assert np.abs(np.subtract(plain, answers)).max() > 1e-3


def test_generation_finds_it_on_its_prompts_with_shared_prefixes(
    checkpoint: str, scores: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_divergence, "_log_probs", lambda *_: pytest.fail("a prompt took the own path"))
    lm = load(checkpoint, f"scores={scores},lam=kl:0.02,norm=centered")
    lm.generate_until(generations(), disable_tqdm=True)
    assert divergence(lm, checkpoint, CONTEXTS) == pytest.approx(0.02, rel=0.012)
    before = lm.gate_settings
    lm.loglikelihood(choices(["quite another context"]), disable_tqdm=True)
    assert lm.gate_settings is before  # once for each run


@pytest.mark.parametrize("arguments", ["lam=kl:0.02,norm=centered", "yes_offset=kl:0.0001"])
def test_another_run_of_the_model_finds_it_anew(arguments: str, checkpoint: str, scores: str) -> None:
    arguments = f"scores={'none' if 'offset' in arguments else scores},{arguments}"
    lm, other = load(checkpoint, arguments), load(checkpoint, arguments)
    contexts = [f"quite another context {n} and" for n in range(7)]
    lm.loglikelihood(choices(), disable_tqdm=True)
    first = lm.gate_settings
    lm.start_run()
    assert lm.gate_settings.is_pending and divergence(lm, checkpoint, contexts) == 0
    answers = lm.loglikelihood(choices(contexts), disable_tqdm=True)
    assert answers == other.loglikelihood(choices(contexts), disable_tqdm=True)
    assert lm.gate_settings.describe() == other.gate_settings.describe() != first.describe()
    number = load(checkpoint, f"scores={scores},lam=0.5")
    before = number.gate_settings
    number.start_run()  # nothing was found
    assert number.gate_settings is before and number.gate_handle is not None


def test_a_folded_gate_keeps_the_strength_of_the_first_run(
    checkpoint: str, scores: str, caplog: pytest.LogCaptureFixture
) -> None:
    lm = load(checkpoint, f"scores={scores},lam=kl:0.02,mode=folded")
    lm.loglikelihood(choices(), disable_tqdm=True)
    before = lm.gate_settings
    lm.start_run()
    assert lm.gate_settings is before and "folded into the weights" in caplog.messages[-1]


def test_order_and_batch_size_make_no_difference(checkpoint: str, scores: str) -> None:
    found = []
    for contexts, batch_size in ((CONTEXTS, 2), (CONTEXTS[::-1], 5), ([*CONTEXTS[7:], *CONTEXTS], 3)):
        lm = load(checkpoint, f"scores={scores},lam=kl:0.02,norm=centered,kl_prompts=10", batch_size)
        lm.loglikelihood(choices(contexts), disable_tqdm=True)
        assert lm.gate_settings.target.prompts == 10
        found.append(lm.gate_settings.lam)
    assert found == pytest.approx([found[0]] * 3, rel=1e-4)
    everything = load(checkpoint, f"scores={scores},lam=kl:0.02,norm=centered")
    everything.loglikelihood(choices(), disable_tqdm=True)
    assert everything.gate_settings.lam != pytest.approx(found[0], rel=1e-3)


def test_the_last_token_can_be_gated_alone(checkpoint: str, scores: str) -> None:
    lm = load(checkpoint, f"scores={scores},lam=kl:0.02,norm=centered,site=pre,positions=last")
    lm.generate_until(generations(), disable_tqdm=True)
    assert lm.engine == "off"
    assert divergence(lm, checkpoint, CONTEXTS) == pytest.approx(0.02, rel=0.012)


@pytest.mark.parametrize("arguments", ["scores=random:4,lam=kl:0.02", "scores=none,yes_offset=kl:0.0001"])
def test_baselines_have_the_same_strength(arguments: str, checkpoint: str) -> None:
    lm = load(checkpoint, arguments)
    lm.generate_until(generations(), disable_tqdm=True)
    target = float(arguments.rpartition(":")[2])
    assert divergence(lm, checkpoint, CONTEXTS) == pytest.approx(target, rel=0.02)
    assert lm.get_model_info()["gate"]["strength"]["target"] == target


@pytest.mark.slow
def test_it_runs_in_lm_eval_and_is_recorded(checkpoint: str, scores: str, halueval_folder: str) -> None:
    run = lm_eval.simple_evaluate(
        model="gated_hf", model_args=f"pretrained={checkpoint},scores={scores},lam=kl:0.02", limit=12, device="cpu",
        tasks=["halueval_qa_select"], task_manager=TaskManager(metadata={"halueval_path": halueval_folder}),
        bootstrap_iters=0,
    )  # fmt: skip
    assert run is not None
    gate = run["config"]["gate"]
    assert gate["lam"] > 0 and gate["strength"]["prompts"] == 12
    assert gate["strength"]["reached"] == pytest.approx(0.02, rel=0.01)
    # The same model object on fewer documents has a strength of its own.
    lm = load(checkpoint, f"scores={scores},lam=kl:0.02")
    lams = []
    for limit in (12, 6):
        run = lm_eval.simple_evaluate(
            model=lm, limit=limit, tasks=["halueval_qa_select"], bootstrap_iters=0,
            task_manager=TaskManager(metadata={"halueval_path": halueval_folder}),
        )  # fmt: skip
        assert run is not None and run["config"]["gate"]["strength"]["prompts"] == limit
        lams.append(run["config"]["gate"]["lam"])
    assert lams[0] == pytest.approx(gate["lam"], rel=1e-3) and lams[0] != pytest.approx(lams[1], rel=1e-3)


def test_what_cannot_have_a_strength_found_is_refused(checkpoint: str, scores: str) -> None:
    lm = load(checkpoint, f"scores={scores},lam=kl:0.02")
    with pytest.raises(
        GateError, match=r"lam=kl:0\.02 is found on a run's requests, and --use_cache needs it"
    ):
        lm.set_cache_hook(SimpleNamespace(dbdict=SimpleNamespace(encode_key=str)))
    with pytest.raises(GateError, match="whole documents have no prompts: give the number"):
        lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("a text",), 0)])
