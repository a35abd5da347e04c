"""`gated_vlm` with shared images: the answers of the model's own path, which is taken where they could differ."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import lmms_eval_runs as kit
from helpers import tiny_vision_models as factories_vlm

from truthgate_eval.errors import DataError, ModelError
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.lmms_eval.model import GatedVLM
from truthgate_eval.vision import self_check
from truthgate_eval.vision.model import VisionLanguageModel
from truthgate_eval.vision.question_engine import ImageQuestionEngine

Folder = Callable[[str], str]


def load(folder: str, **arguments: Any) -> GatedVLM:
    return GatedVLM(folder, device="cpu", **{"scores": "none", **arguments})


@pytest.fixture
def own_path(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many questions the model's own path answered, call by call."""
    calls: list[int] = []
    for name in ("generate", "losses"):
        method = getattr(VisionLanguageModel, name)

        def counted(self: Any, prompts: Any, *args: Any, method: Any = method, **kwargs: Any) -> Any:
            calls.append(len(prompts))
            return method(self, prompts, *args, **kwargs)

        monkeypatch.setattr(VisionLanguageModel, name, counted)
    return calls


def polls(folder: Path) -> list[dict[str, Any]]:
    """Six questions about each of three images."""
    docs = []
    for n in range(3):
        path = folder / f"{n}.png"
        factories_vlm.random_image(n, (40 + 20 * n, 60)).save(path)
        for thing in ("dog", "cat", "small cup", "car", "very old tree", "man"):
            docs.append({"question": f"Is there a {thing} in it?", "pictures": [str(path)], "answer": 0})
    return docs


def score(model: GatedVLM, docs: list[dict[str, Any]]) -> list[tuple[float, bool]]:
    model.task_dict[kit.TASK] = {kit.SPLIT: docs}
    return model.loglikelihood(
        [
            kit.instance("loglikelihood", n, doc["question"], choice, kit.open_images)
            for n, doc in enumerate(docs)
            for choice in (" yes", " no")
        ]
    )


@pytest.fixture
def scores(tmp_path: Path) -> str:
    values = np.random.default_rng(0).uniform(0.5, 1.0, (3, 4))
    return str(TruthScores(values, metadata={"model": "the base"}).save(tmp_path / "base.npz"))


@pytest.mark.parametrize("name", factories_vlm.NAMES)
@pytest.mark.parametrize("mode", ["live", "folded"])
def test_gated_answers_and_losses_are_those_of_the_own_path(
    name: str, mode: str, vlm_checkpoint: Folder, scores: str, tmp_path: Path, own_path: list[int]
) -> None:
    docs = polls(tmp_path)
    # The strength at which this random model's texts still differ.
    gate = {"scores": scores, "lam": 2.0 if name == "qwen2_5_omni" else 0.7, "mode": mode}
    ours = load(vlm_checkpoint(name), **gate, batch_size="auto")
    texts, losses = kit.generate(ours, docs), score(ours, docs)
    assert own_path == []
    theirs = load(vlm_checkpoint(name), **gate, engine="off")
    assert texts == kit.generate(theirs, docs) != kit.generate(load(vlm_checkpoint(name)), docs)
    for mine, plain in zip(losses, score(theirs, docs), strict=True):
        assert mine == (pytest.approx(plain[0], abs=1e-4), plain[1])
    assert sum(own_path) == len(docs) + len(losses) and len(set(texts)) > 3


def test_a_model_with_an_adapter_shares_prefixes(
    vlm_checkpoint: Folder, tmp_path: Path, own_path: list[int], scores: str
) -> None:
    from peft import LoraConfig, get_peft_model

    base = load(vlm_checkpoint("llava")).vlm.model
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=r".*language_model.*(q_proj|o_proj)"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    adapted.save_pretrained(tmp_path / "adapter")
    docs, options = polls(tmp_path), {"peft": str(tmp_path / "adapter"), "scores": scores, "lam": 1.0}
    ours = load(vlm_checkpoint("llava"), **options)
    texts, losses = kit.generate(ours, docs), score(ours, docs)
    assert own_path == []
    theirs = load(vlm_checkpoint("llava"), **options, engine="off")
    assert texts == kit.generate(theirs, docs)
    assert np.allclose([x for x, _ in losses], [x for x, _ in score(theirs, docs)], atol=1e-4)
    assert texts != kit.generate(load(vlm_checkpoint("llava"), scores=scores, lam=1.0), docs)


def test_half_precision_shares_and_is_as_exact_as_the_own_path(
    vlm_checkpoint: Folder, tmp_path: Path, own_path: list[int]
) -> None:
    docs = polls(tmp_path)
    ours = load(vlm_checkpoint("qwen2_5_vl"), dtype="bfloat16", batch_size=4)
    texts, found = kit.generate(ours, docs), np.array([x for x, _ in score(ours, docs)])
    assert own_path == [] and len(texts) == len(docs)
    plain = load(vlm_checkpoint("qwen2_5_vl"), dtype="bfloat16", engine="off")
    exact = np.array([x for x, _ in score(load(vlm_checkpoint("qwen2_5_vl"), engine="off"), docs)])
    error, theirs = abs(found - exact).max(), abs(np.array([x for x, _ in score(plain, docs)]) - exact).max()
    assert 0 < error < 2 * theirs


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"num_beams": 2},
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 3},
    ],
)
def test_what_is_not_plain_greedy_takes_the_own_path_and_one_line_says_so(
    settings: dict[str, Any], vlm_checkpoint: Folder, tmp_path: Path, own_path: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    model = load(vlm_checkpoint("llava"), batch_size=4)
    docs = polls(tmp_path)[:4]
    with caplog.at_level(logging.WARNING, "truthgate_eval"):
        kit.generate(model, docs, {**kit.SETTINGS, **settings})
    assert own_path == [4]
    assert [r.message for r in caplog.records if "own path" in r.message] == [
        "4 of 4 requests take the model's own path: they ask for more than greedy decoding, "
        "or share nothing that can be computed once"
    ]
    kit.generate(model, docs, {**kit.SETTINGS, "num_beams": 1, "repetition_penalty": 1.0})
    assert own_path == [4]


def test_a_checkpoints_own_penalty_is_honoured(
    vlm_checkpoint: Folder, tmp_path: Path, own_path: list[int]
) -> None:
    model = load(vlm_checkpoint("llava"))
    model.vlm.model.generation_config.repetition_penalty = 1.3
    kit.generate(model, polls(tmp_path)[:2])
    assert own_path == [1, 1]


def test_the_engine_can_be_switched_off(vlm_checkpoint: Folder, tmp_path: Path, own_path: list[int]) -> None:
    model = load(vlm_checkpoint("llava"), engine="off", batch_size="auto")
    kit.generate(model, polls(tmp_path)[:4])
    assert own_path == [4] and model.question_engine is None


def without_positions(model: Any) -> None:
    def drop(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "position_ids": None}

    model.model.language_model.register_forward_pre_hook(drop, with_kwargs=True)


def bidirectional(model: Any) -> None:
    """As in Gemma 3, an image's tokens attend to those after them, which our mask does not allow."""

    def blend(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        embedded = kwargs["inputs_embeds"]
        return args, {**kwargs, "inputs_embeds": embedded + embedded.mean(1, keepdim=True)}

    model.model.language_model.register_forward_pre_hook(blend, with_kwargs=True)


@pytest.mark.parametrize("break_", [without_positions, bidirectional])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_model_that_cannot_share_is_found_and_takes_its_own_path(
    name: str, break_: Any, vlm_checkpoint: Folder, tmp_path: Path, own_path: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    model = load(vlm_checkpoint(name), batch_size=8)
    break_(model.vlm.model)
    with caplog.at_level(logging.WARNING, "truthgate_eval"):
        kit.generate(model, polls(tmp_path)[:4])
    assert own_path == [4] and model.question_engine is None
    assert sum("shares no prefixes" in record.message for record in caplog.records) == 1


def test_several_images_take_the_own_path_where_the_model_mixes_them(
    vlm_checkpoint: Folder, tmp_path: Path, own_path: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_check, "find_multi_image_mismatch", lambda _: "they differ")
    docs = kit.documents(tmp_path)
    texts = kit.generate(load(vlm_checkpoint("llava")), docs)
    assert own_path == [1] * sum(len(doc["pictures"]) == 2 for doc in docs)
    assert texts == kit.generate(load(vlm_checkpoint("llava"), engine="off"), docs)


def test_where_sharing_fails_the_own_path_answers_or_names_the_document(
    vlm_checkpoint: Folder, tmp_path: Path, own_path: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, docs = load(vlm_checkpoint("llava")), polls(tmp_path)[:3]
    expected = kit.generate(model, docs)

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("something inside\nwith details")

    monkeypatch.setattr(ImageQuestionEngine, "generate", fail)
    assert kit.generate(model, docs) == expected and own_path == [1, 1, 1]
    monkeypatch.setitem(model.vlm.__dict__, "encode", fail)
    with pytest.raises(ModelError, match=r"document \d failed: RuntimeError: something inside"):
        kit.generate(model, docs)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_the_vision_tower_runs_once_for_each_image_of_a_sweep(
    name: str, vlm_checkpoint: Folder, tmp_path: Path, scores: str
) -> None:
    """One loaded model, gate after gate, the questions of two tasks: features of images stay valid."""
    from truthgate_eval.gating.gate_config import GateConfig

    model, docs = load(vlm_checkpoint(name), batch_size=2), polls(tmp_path)
    assert model.question_engine is not None  # the self check encodes images of its own
    runs: list[Any] = []
    tower = next(m for n, m in model.vlm.model.named_modules() if n.endswith((".vision_tower", ".visual")))
    tower.register_forward_hook(lambda *_: runs.append(1))
    answers = []
    for lam in (0.5, 3.0, 0.5):
        handle = GateConfig.parse(scores, lam=lam, norm="minmax").apply(model.vlm.model, "m")
        answers.append((kit.generate(model, docs), score(model, docs)))
        assert handle is not None
        handle.remove()
    assert len(runs) == 2  # three images in batches of two
    assert answers[0] == answers[2] != answers[1]


@pytest.mark.parametrize("engine", ["auto", "off"])
def test_an_answer_without_a_token_is_refused_with_its_document(
    engine: str, vlm_checkpoint: Folder, tmp_path: Path
) -> None:
    docs = kit.documents(tmp_path, 2)
    model = load(vlm_checkpoint("llava"), engine=engine)
    model.task_dict[kit.TASK] = {kit.SPLIT: docs}
    requests = [
        kit.instance("loglikelihood", n, doc["question"], answer, kit.open_images)
        for n, (doc, answer) in enumerate(zip(docs, (" yes", ""), strict=True))
    ]
    message = f"task '{kit.TASK}', document 1: the answer '' has no token of its own after the prompt"
    with pytest.raises(DataError, match=message):
        model.loglikelihood(requests)
