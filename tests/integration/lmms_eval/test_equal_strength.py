"""Strengths given as a divergence in lmms-eval: found on questions about images, as the model sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import lmms_eval_runs as kit
from helpers import tiny_vision_models as factories_vlm
from helpers.tiny_vision_models import HEADS, LAYERS

from truthgate_eval.errors import GateError
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.lmms_eval.model import GatedVLM
from truthgate_eval.harness.lmms_eval.response_cache import KeyedResponseCache
from truthgate_eval.vision.model import VisionLanguageModel
from truthgate_eval.vision.question_engine import ImageQuestionEngine

Folder = Callable[[str], str]
ACTIONS = {
    "soft": "lam=kl:0.02,norm=centered,site=pre",
    "select": "lam=kl:0.02,action=select,top=2,bottom=2,site=pre",
    "shift": "alpha=kl:0.02,action=shift,top=4",
}


@pytest.fixture
def scores(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    directions = {
        "probe_weight": rng.normal(size=(LAYERS, HEADS, 8)),
        "activation_std": rng.uniform(1, 2, (LAYERS, HEADS)),
    }
    made = TruthScores(rng.uniform(0.5, 1.0, (LAYERS, HEADS)), **directions, metadata={"site": "pre"})
    return str(made.save(tmp_path / "base.npz"))


def load(folder: str, arguments: str, batch_size: int = 2) -> GatedVLM:
    """The model of `--model_args`."""
    text = f"pretrained={folder},device=cpu,dtype=float32,batch_size={batch_size},{arguments}"
    return GatedVLM.create_from_arg_string(text)


def distributions(lm: GatedVLM, docs: Sequence[dict[str, Any]]) -> torch.Tensor:
    """After each question, in a pass of its own with its images."""
    rows = []
    for doc in docs:
        images = [image.convert("RGB") for image in kit.open_images(doc)]
        inputs = lm.vlm.encode([lm.vlm.prompt(doc["question"], len(images))], [images])
        with torch.no_grad():
            rows.append(lm.vlm.model(**inputs).logits[0, -1].double())
    return torch.stack(rows).log_softmax(-1)


def kl(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.exp() * (one - other)).sum(-1).mean())


@pytest.mark.parametrize("engine", ["auto", "off"])
@pytest.mark.parametrize(("action", "mode"), [("soft", "live"), ("select", "folded"), ("shift", "folded")])
def test_the_first_requests_gate_the_model_at_the_divergence(
    action: str, mode: str, engine: str, vlm_checkpoint: Folder, scores: str, tmp_path: Path
) -> None:
    docs = kit.documents(tmp_path, 12)  # about no, one and two images
    folder = vlm_checkpoint("llava")
    lm = load(folder, f"scores={scores},{ACTIONS[action]},mode={mode},engine={engine}")
    vanilla = distributions(lm, docs)
    answers = kit.generate(lm, docs)
    assert kl(vanilla, distributions(lm, docs)) == pytest.approx(0.02, rel=0.015)
    assert (lm.gate_handle is None) == (mode == "folded")
    gate = lm.get_model_info()["gate"]
    argument = "alpha" if action == "shift" else "lam"
    assert gate["strength"]["argument"] == argument and gate["strength"]["prompts"] == len(docs)
    number = ACTIONS[action].replace("kl:0.02", repr(gate[argument]))
    told = load(folder, f"scores={scores},{number},mode={mode},engine={engine}")
    assert kit.generate(told, docs) == answers


@pytest.mark.parametrize("name", factories_vlm.NAMES)
def test_it_is_found_with_shared_prefixes_in_every_class_of_model(
    name: str, vlm_checkpoint: Folder, scores: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        VisionLanguageModel, "next_token_logits", lambda *_: pytest.fail("a question took the own path")
    )
    docs = [doc for doc in kit.documents(tmp_path, 16) if len(doc["pictures"]) == 1]
    lm = load(vlm_checkpoint(name), f"scores={scores},lam=kl:0.02,norm=centered,site=pre")
    vanilla = distributions(lm, docs)
    kit.generate(lm, docs)
    assert kl(vanilla, distributions(lm, docs)) == pytest.approx(0.02, rel=0.02)


def test_it_is_found_on_the_own_path_where_sharing_fails(
    vlm_checkpoint: Folder, scores: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a kernel fails")

    docs = kit.documents(tmp_path, 8)
    found = []
    for _ in range(2):
        lm = load(vlm_checkpoint("llava"), f"scores={scores},lam=kl:0.02,norm=centered,site=pre")
        kit.generate(lm, docs)
        found.append(lm.gate_settings.lam)
        monkeypatch.setattr(ImageQuestionEngine, "next_token_log_probs", fail)
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_order_and_batch_size_make_no_difference_and_images_do(
    vlm_checkpoint: Folder, scores: str, tmp_path: Path
) -> None:
    docs = kit.documents(tmp_path, 24)
    same_text = [{**doc, "question": "Is there a cat?"} for doc in docs if doc["pictures"]]
    found = []
    for own, batch_size in ((docs, 2), (docs[::-1], 5), ([*docs, *docs[:9]], 3)):
        lm = load(
            vlm_checkpoint("llava"), f"scores={scores},lam=kl:0.02,norm=centered,kl_prompts=8", batch_size
        )
        kit.generate(lm, own)
        assert lm.gate_settings.target is not None and lm.gate_settings.target.prompts == 8
        found.append(lm.gate_settings.lam)
    assert found == pytest.approx([found[0]] * 3, rel=1e-4)
    lm = load(vlm_checkpoint("llava"), f"scores={scores},lam=kl:0.02,norm=centered")
    kit.generate(lm, same_text)
    assert lm.gate_settings.target is not None and lm.gate_settings.target.prompts == len(same_text)


def test_log_likelihoods_find_it_before_the_answer(
    vlm_checkpoint: Folder, scores: str, tmp_path: Path
) -> None:
    docs = kit.documents(tmp_path, 8)
    lm = load(vlm_checkpoint("llava"), f"scores={scores},lam=kl:0.02,norm=centered,positions=last")
    lm.task_dict[kit.TASK] = {kit.SPLIT: docs}
    vanilla = distributions(lm, docs)
    requests = [
        kit.instance("loglikelihood", n, doc["question"], answer, kit.open_images)
        for n, doc in enumerate(docs)
        for answer in (" yes", " no")
    ]
    lm.loglikelihood(requests)
    assert lm.gate_settings.target is not None and lm.gate_settings.target.prompts == len(docs)
    assert kl(vanilla, distributions(lm, docs)) == pytest.approx(0.02, rel=0.015)


@pytest.mark.slow
def test_another_run_of_the_model_finds_it_anew(vlm_checkpoint: Folder, scores: str, tmp_path: Path) -> None:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(kit.save_tasks(tmp_path / "tasks")), include_defaults=False)
    lm = load(vlm_checkpoint("llava"), f"scores={scores},lam=kl:0.02,norm=centered")
    found = []
    for limit in (8, 4):
        run = simple_evaluate(
            model=lm, tasks=["tiny_choice"], task_manager=manager, bootstrap_iters=0, limit=limit
        )
        assert run["gate"]["strength"]["prompts"] == limit
        found.append(run["gate"]["lam"])
    assert found[0] != pytest.approx(found[1], rel=1e-3)


def test_baselines_have_the_same_strength(vlm_checkpoint: Folder, tmp_path: Path) -> None:
    docs = kit.documents(tmp_path, 8)
    for arguments in ("scores=random:4,lam=kl:0.02", "scores=none,yes_offset=kl:0.0001"):
        lm = load(vlm_checkpoint("llava"), arguments)
        vanilla = distributions(lm, docs)
        kit.generate(lm, docs)
        target = float(arguments.rpartition(":")[2])
        assert kl(vanilla, distributions(lm, docs)) == pytest.approx(target, rel=0.02)


def test_what_cannot_have_a_strength_found_is_refused(vlm_checkpoint: Folder, scores: str) -> None:
    folder = vlm_checkpoint("llava")
    lm = load(folder, f"scores={scores},lam=kl:0.02")
    with pytest.raises(
        GateError, match=r"lam=kl:0\.02 is found on a run's requests, and --use_cache needs it"
    ):
        KeyedResponseCache(None, lm)
    with pytest.raises(GateError, match="positions=generated changes nothing at a prompt's last token"):
        load("/no/such/model", f"scores={scores},lam=kl:0.02,positions=generated")
