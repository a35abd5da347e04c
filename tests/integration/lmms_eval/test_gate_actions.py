"""The actions and positions of a gate, as model arguments of `gated_vlm`, in lmms-eval's own requests."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import lmms_eval_runs as kit
from helpers import tiny_vision_models as factories_vlm
from helpers.tiny_vision_models import HEADS, LAYERS

from truthgate_eval.errors import GateError
from truthgate_eval.gating.gate import attach
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.lmms_eval.model import GatedVLM

Folder = Callable[[str], str]


@pytest.fixture
def scores(tmp_path: Path) -> str:
    values = np.random.default_rng(0).uniform(0.5, 1.0, (LAYERS, HEADS))
    return str(TruthScores(values).save(tmp_path / "base.npz"))


def load(folder: str, arguments: str) -> GatedVLM:
    """The model of `--model_args`."""
    text = f"pretrained={folder},device=cpu,batch_size=2,{arguments}"
    return GatedVLM.create_from_arg_string(text)


def step_by_step(model: GatedVLM, prompt: str, images: list[Any], answer: str) -> float:
    """Mean loss of an answer that is fed token by token to the gated model."""
    assert model.gate_handle is not None
    vlm = model.vlm
    whole = vlm.tokens(prompt + answer)
    target = whole[len(vlm.tokens(prompt)) :]
    inputs = dict(vlm.encode([prompt], [images]))
    decoder = inspect.signature(vlm.model.forward).parameters
    argument = "cache" if "cache" in decoder else "past_key_values"
    losses, cache = [], None
    with torch.no_grad():
        for token in target:
            out = vlm.model(**inputs, use_cache=True, **({} if cache is None else {argument: cache}))
            cache = out.past_key_values
            losses.append(-float(out.logits[0, -1].log_softmax(-1)[token]))
            mask = torch.cat([inputs["attention_mask"], torch.ones((1, 1), dtype=torch.long)], dim=1)
            inputs = {"input_ids": torch.tensor([[token]]), "attention_mask": mask}
    return float(np.mean(losses))


@pytest.mark.parametrize("positions", ["last", "generated"])
def test_losses_are_those_of_decoding_step_by_step(
    positions: str, vlm_checkpoint: Folder, scores: str, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = f"scores={scores},lam=3,norm=centered"
    with caplog.at_level(logging.INFO):
        model = load(vlm_checkpoint("llava"), f"{arguments},positions={positions}")
    lines = [r.message for r in caplog.records if "prefixes are shared" in r.message]
    assert lines == [f"positions={positions}: no prefixes are shared (engine=off)"]
    assert model.engine == "off" and model.question_engine is None
    questions = [
        ("Is there a dog?", " yes it is"),
        ("What?", " no"),
        ("And the colour of the cup?", " a red one"),
    ]
    images = [factories_vlm.random_image(n) for n in range(3)]
    model.task_dict[kit.TASK] = {kit.SPLIT: [{"question": text} for text, _ in questions]}

    requests = [
        kit.instance("loglikelihood", n, text, answer, lambda doc: [images[find(doc)]])
        for n, (text, answer) in enumerate(questions)
    ]

    def find(doc: Any) -> int:
        return [text for text, _ in questions].index(doc["question"])

    found = [loss for loss, _ in model.loglikelihood(requests)]
    expected = [
        step_by_step(model, model.vlm.prompt(text, 1), [images[n]], answer)
        for n, (text, answer) in enumerate(questions)
    ]
    assert found == pytest.approx(expected, abs=1e-4)
    everywhere = load(vlm_checkpoint("llava"), arguments)
    everywhere.task_dict[kit.TASK] = model.task_dict[kit.TASK]
    assert np.abs(np.subtract(found, [loss for loss, _ in everywhere.loglikelihood(requests)])).max() > 1e-3


@pytest.mark.parametrize("positions", ["last", "generated"])
@pytest.mark.parametrize("name", factories_vlm.NAMES)
def test_generation_is_that_of_the_gated_model(
    name: str, positions: str, vlm_checkpoint: Folder, scores: str, tmp_path: Path
) -> None:
    model = load(vlm_checkpoint(name), f"scores={scores},lam=3,norm=centered,positions={positions}")
    docs = kit.documents(tmp_path, 3)
    found = kit.generate(model, docs)
    plain = load(vlm_checkpoint(name), "scores=none,engine=off")
    assert model.gate_handle is not None
    with attach(plain.vlm.model, model.gate_handle.gate):
        expected = kit.generate(plain, docs)
    assert found == expected
    everywhere = load(vlm_checkpoint(name), f"scores={scores},lam=3,norm=centered")
    assert found != kit.generate(everywhere, docs)


def test_a_selection_comes_through_the_model_arguments(vlm_checkpoint: Folder, scores: str) -> None:
    arguments = f"scores={scores},action=select,top=2,bottom=1,in=1.5,out=0,per=layer,positions=None"
    model = load(vlm_checkpoint("llava"), arguments)
    assert model.gate_handle is not None
    values = model.gate_handle.gate.values
    assert ((values == 1.5).sum(axis=1) == 2).all() and ((values == 0).sum(axis=1) == 1).all()
    gate = model.get_model_info()["gate"]
    assert (gate["action"], gate["per"], gate["in"], model.engine) == ("select", "layer", 1.5, "auto")
    with pytest.raises(GateError, match="action=select takes no alpha"):
        load("/no/such/model", f"scores={scores},action=select,alpha=1")
