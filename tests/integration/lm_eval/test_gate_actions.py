"""The actions and positions of a gate, as model arguments of `gated_hf`, in lm-eval's own requests."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from lm_eval.api.instance import Instance

from truthgate_eval.errors import GateError
from truthgate_eval.gating.gate import Gate, attach
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.lm_eval.model import GatedHF

RNG = np.random.default_rng(0)
SCORES = TruthScores(
    RNG.uniform(size=(3, 4)), probe_weight=RNG.normal(size=(3, 4, 8)), activation_std=RNG.uniform(1, 2, (3, 4)),
    metadata={"model": "tiny", "site": "pre"},
)  # fmt: skip
# Contexts and answers of several lengths; two answers of one token to one context.
PAIRS = [
    ("2 and 2 are", " 4"),
    ("2 and 2 are", " 5"),
    ("one", " two three"),
    ("How much is it?", " many"),
    ("x", "y"),
]


@pytest.fixture
def scores(tmp_path: Path) -> str:
    return str(SCORES.save(tmp_path / "scores.npz"))


def load(checkpoint: str, arguments: str) -> Any:
    """The model of `--model_args`."""
    return GatedHF.create_from_arg_string(
        f"pretrained={checkpoint},{arguments}", {"device": "cpu", "batch_size": 2}
    )


def loglikelihoods(lm: Any, pairs: Sequence[tuple[str, str]] = PAIRS) -> list[tuple[float, bool]]:
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    return lm.loglikelihood(requests, disable_tqdm=True)


def generated(lm: Any, contexts: Sequence[str]) -> list[str]:
    settings = {"until": ["\n\n\n"], "max_gen_toks": 6}
    requests = [Instance("generate_until", {}, (context, settings), i) for i, context in enumerate(contexts)]
    return lm.generate_until(requests, disable_tqdm=True)


def test_a_selection_comes_through_the_model_arguments(checkpoint: str, scores: str) -> None:
    lm = load(
        checkpoint, f"scores={scores},action=select,top=2,bottom=3,in=1.5,out=0,site=post,positions=None"
    )
    order = np.argsort(SCORES.scores.ravel())
    values = np.ones(12)
    values[order[-2:]], values[order[:3]] = 1.5, 0
    np.testing.assert_array_equal(lm.gate_handle.gate.values.ravel(), values.astype(np.float32))
    gate = lm.get_model_info()["gate"]
    assert (gate["action"], gate["top"], gate["bottom"], gate["in"], gate["out"]) == (
        "select",
        2,
        3,
        1.5,
        0.0,
    )
    assert lm.engine == "auto" and lm.shared_model is not None  # every token is gated alike


def test_a_folded_shift_is_the_live_one_in_both_kinds_of_request(checkpoint: str, scores: str) -> None:
    arguments = f"scores={scores},action=shift,top=5,alpha=3"
    live, folded = load(checkpoint, arguments), load(checkpoint, f"{arguments},mode=folded")
    vanilla = GatedHF(checkpoint, scores="none", device="cpu", batch_size=2)
    found, expected, plain = (loglikelihoods(lm) for lm in (folded, live, vanilla))
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert np.abs(np.subtract(found, plain)).max() > 0.1
    contexts = [context for context, _ in PAIRS]
    assert generated(folded, contexts) == generated(live, contexts) != generated(vanilla, contexts)


def decoded_step_by_step(model: Any, gate: Gate, prompt: list[int], answer: list[int]) -> float:
    """Log-likelihood of an answer that is fed token by token; an independent hook gates by pass."""
    layers = model.model.layers
    state = {"prompt": True}
    hooks = []
    for row, layer in zip(gate.values, layers, strict=True):
        factors = torch.from_numpy(row).repeat_interleave(8)

        def change(_module: Any, _args: Any, output: torch.Tensor, factors: Any = factors) -> torch.Tensor:
            if gate.positions == "generated" and state["prompt"]:
                return output
            return torch.cat([output[:, :-1], output[:, -1:] * factors], dim=1)

        hooks.append(layer.self_attn.o_proj.register_forward_hook(change))
    total, cache = 0.0, None
    argument = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    with torch.no_grad():
        for fed, target in zip([prompt, *([token] for token in answer[:-1])], answer, strict=True):
            out = model(torch.tensor([fed]), use_cache=True, **{argument: cache})
            cache, state["prompt"] = out.past_key_values, False
            total += float(out.logits[0, -1].log_softmax(-1)[target])
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize("positions", ["last", "generated"])
def test_log_likelihoods_are_those_of_decoding_step_by_step(
    positions: str, checkpoint: str, scores: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        lm = load(checkpoint, f"scores={scores},lam=3,norm=centered,site=post,positions={positions}")
        found = loglikelihoods(lm)
    lines = [r.message for r in caplog.records if "shared" in r.message]
    assert lines == [f"positions={positions}: no prefixes are shared (engine=off)"]
    assert lm.engine == "off" and lm.get_model_info()["gate"]["positions"] == positions
    model = hf.AutoModelForCausalLM.from_pretrained(checkpoint)
    expected = [
        decoded_step_by_step(model, lm.gate_handle.gate, lm.tok_encode(context), lm.tok_encode(answer))
        for context, answer in PAIRS
    ]
    assert [value for value, _ in found] == pytest.approx(expected, abs=1e-3)
    everywhere = loglikelihoods(load(checkpoint, f"scores={scores},lam=3,norm=centered,site=post"))
    assert max(abs(a - b) for (a, _), (b, _) in zip(found, everywhere, strict=True)) > 0.01


@pytest.mark.parametrize("positions", ["last", "generated"])
def test_generation_is_that_of_the_gated_model(positions: str, checkpoint: str, scores: str) -> None:
    lm = load(checkpoint, f"scores={scores},lam=9,norm=centered,site=post,positions={positions}")
    contexts = ["How much is 2 and 2?", "one"]  # a batch with padding
    model = hf.AutoModelForCausalLM.from_pretrained(checkpoint)
    expected = []
    for context in contexts:
        tokens = torch.tensor([lm.tok_encode(context)])
        with attach(model, lm.gate_handle.gate):
            out = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=6, do_sample=False
            )
        expected.append(lm.tok_decode(out[0, tokens.shape[1] :].tolist()))
    assert generated(lm, contexts) == expected


def test_whole_documents_have_no_answer_whose_tokens_could_be_gated(checkpoint: str, scores: str) -> None:
    lm = load(checkpoint, f"scores={scores},lam=3,positions=last")
    with pytest.raises(GateError, match="scores whole documents: use positions=all"):
        lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("a text",), 0)])
    everywhere = load(checkpoint, f"scores={scores},lam=3,positions=all")
    assert len(everywhere.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("a text",), 0)])) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("action=select,alpha=1", "action=select takes no alpha"),
        ("action=shift,top=2", "action=shift needs alpha"),
        ("lam=1,top=3", "action=soft takes no top"),
        ("lam=1,positions=last,mode=folded", "cannot be folded"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(scores: str, arguments: str, message: str) -> None:
    with pytest.raises(GateError, match=message):
        load("/no/such/model", f"scores={scores},{arguments}")
