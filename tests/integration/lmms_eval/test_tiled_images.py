"""Idefics3 and SmolVLM, whose processors cut an image into tiles: `gated_vlm` and probing against plain calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import lmms_eval_runs as kit
from helpers.plain_model import PlainModel
from helpers.tiny_vision_families import TILED
from helpers.tiny_vision_models import HEADS, LAYERS, random_image

from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.lmms_eval.model import GatedVLM
from truthgate_eval.harness.lmms_eval.probing import load_for_probing
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample
from truthgate_eval.probing.image_capture import capture_with_images
from truthgate_eval.vision import question_engine
from truthgate_eval.vision.model import VisionLanguageModel

Folder = Callable[[str], str]
LAM = 2.0


@pytest.fixture(params=["idefics3", *(pytest.param(name, marks=pytest.mark.slow) for name in TILED[1:])])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def plain(name: str, vlm_checkpoint: Folder) -> PlainModel:
    return PlainModel.load(vlm_checkpoint(name))


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> str:
    values = np.random.default_rng(0).uniform(0.5, 1.0, (LAYERS, HEADS))
    artifact = TruthScores(values, metadata={"model": "the base"})
    return str(artifact.save(tmp_path_factory.mktemp("scores") / "base.npz"))


@pytest.fixture
def docs(tmp_path: Path) -> list[dict[str, Any]]:
    """Eight questions about no, one or two images of different shapes, and one more about each single one."""
    rows = kit.documents(tmp_path)
    return rows + [{**row, "question": "Which colour has it?"} for row in rows if len(row["pictures"]) == 1]


def load(folder: str, **arguments: Any) -> GatedVLM:
    return GatedVLM(folder, device="cpu", **{"scores": "none", **arguments})


def gate_of(scores: str) -> np.ndarray:
    """1 + lam * minmax(S), in plain numpy."""
    values = TruthScores.load(scores).scores.astype(np.float64)
    low, high = values.min(1, keepdims=True), values.max(1, keepdims=True)
    return 1 + LAM * (values - low) / (high - low + 1e-6)


def texts_of(plain: PlainModel, docs: list[dict[str, Any]]) -> list[str]:
    return [plain.text(doc["question"], kit.open_images(doc)) for doc in docs]


def test_the_processor_writes_what_the_real_one_writes(name: str, plain: PlainModel) -> None:
    """A wide image is two tiles and the whole; not split, it is the whole alone."""
    prompt = plain.prompt("Is there a cat?", 1)
    assert prompt == "<|im_start|>User:<image>Is there a cat?<end_of_utterance>\nAssistant:"
    ids = plain.inputs(prompt, [random_image(0, (80, 40))])["input_ids"][0]
    found = plain.processor.tokenizer.decode(ids)
    image = 4 * "<image>"
    whole = f"<fake_token_around_image><global-img>{image}<fake_token_around_image>"
    tiles = "".join(f"<fake_token_around_image><row_1_col_{n}>{image}" for n in (1, 2)) + "\n\n"
    written = whole if name.endswith("_whole") else tiles + whole
    assert found == prompt.replace("<image>", written)


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_texts_are_those_of_plain_generate_and_the_images_are_shared(
    name: str, batch_size: int, plain: PlainModel, vlm_checkpoint: Folder, docs: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    own_path: list[int] = []
    encoded: list[int] = []
    encode_images, generate = question_engine.encode_images, VisionLanguageModel.generate

    def counted(vlm: Any, decoder: Any, images: Any) -> Any:
        encoded.append(len(images))
        return encode_images(vlm, decoder, images)

    def counted_generate(self: Any, prompts: Any, *args: Any, **options: Any) -> Any:
        texts = generate(self, prompts, *args, **options)
        own_path.append(len(texts))  # a batch that fails is halved, and counts once it works
        return texts

    gated = load(vlm_checkpoint(name), batch_size=batch_size)
    assert gated.question_engine is not None and gated.question_engine.model.supports_multi_image
    monkeypatch.setattr(question_engine, "encode_images", counted)
    monkeypatch.setattr(VisionLanguageModel, "generate", counted_generate)
    expected = texts_of(plain, docs)
    assert kit.generate(gated, docs) == expected and len(set(expected)) > 5
    distinct = {picture for doc in docs for picture in doc["pictures"]}
    assert own_path == [] and sum(encoded) == len(distinct) < sum(len(doc["pictures"]) for doc in docs)
    own = load(vlm_checkpoint(name), batch_size=batch_size, engine="off")
    assert kit.generate(own, docs) == expected and sum(own_path) == len(docs)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["live", "folded"])
@pytest.mark.parametrize("site", ["post", "pre"])
def test_gated_texts_and_logits_are_those_of_a_gate_by_hand(
    name: str, site: str, mode: str, plain: PlainModel, vlm_checkpoint: Folder, scores: str,
    docs: list[dict[str, Any]],
) -> None:  # fmt: skip
    by_hand = plain.gated(gate_of(scores), site)
    gated = load(vlm_checkpoint(name), scores=scores, lam=LAM, site=site, mode=mode, batch_size=3)
    expected = texts_of(by_hand, docs)
    assert gated.question_engine is not None
    assert kit.generate(gated, docs) == expected != texts_of(plain, docs)
    inputs = plain.inputs(plain.prompt("Which one?", 2), [random_image(1, (70, 30)), random_image(2)])
    with torch.no_grad():
        vanilla, wanted, found = (m(**inputs).logits for m in (plain.model, by_hand.model, gated.vlm.model))
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(wanted, vanilla, atol=1e-2)


@pytest.mark.slow
def test_losses_are_those_of_the_own_path(
    name: str, vlm_checkpoint: Folder, scores: str, docs: list[dict[str, Any]]
) -> None:
    def losses(model: GatedVLM) -> list[tuple[float, bool]]:
        model.task_dict[kit.TASK] = {kit.SPLIT: docs}
        return model.loglikelihood(
            [
                kit.instance("loglikelihood", n, doc["question"], choice, kit.open_images)
                for n, doc in enumerate(docs)
                for choice in (" Yes", " No, not at all")
            ]
        )

    ours, own = (
        load(vlm_checkpoint(name), scores=scores, lam=LAM, batch_size=3, engine=engine)
        for engine in ("auto", "off")
    )
    for found, expected in zip(losses(ours), losses(own), strict=True):
        assert found == (pytest.approx(expected[0], abs=1e-4), expected[1])


@pytest.mark.parametrize("chat", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("site", ["post", "pre"])
def test_probing_reads_what_generating_the_answer_computes(
    name: str, site: str, chat: bool, plain: PlainModel, vlm_checkpoint: Folder
) -> None:
    vlm = load_for_probing("vlm", {"pretrained": vlm_checkpoint(name)}, device="cpu", chat=chat)
    images = [[random_image(10 * n + k, (30 + 25 * n, 40)) for k in range(1 + (n == 2))] for n in range(4)]
    examples = [
        ProbeExample(f"Is there a {'very ' * n}big cat?", answer, True, n, lambda own=own: own)
        for n, own in enumerate(images)
        for answer in ("yes", "no way")
    ]
    dataset = ProbeDataset(examples, {}, {"task": "made"}, bare_questions=True)
    for batch_size in (1, 3):
        found = capture_with_images(vlm, dataset, site=site, batch_size=batch_size)
        for one, example in zip(found, examples, strict=True):
            assert example.load_images is not None
            own = list(example.load_images())
            prompt = (
                plain.prompt(example.context, len(own))
                if chat
                else f"{' '.join(['<image>'] * len(own))}\n{example.context}\nASSISTANT:"
            )
            expected = plain.activations(prompt, f" {example.answer}", own, site)
            assert expected.shape == (LAYERS, 32)
            np.testing.assert_allclose(
                one.reshape(expected.shape), expected, atol=1e-5 * np.abs(expected).max()
            )


def test_the_gate_is_on_the_text_decoder_alone(name: str, vlm_checkpoint: Folder) -> None:
    model = load(vlm_checkpoint(name)).vlm.model
    layout = find_attention_layout(model)
    assert layout.shape == (LAYERS, HEADS) and layout.decoder is model.model.text_model
    assert [p.module for p in layout.projections] == [
        layer.self_attn.o_proj for layer in model.model.text_model.layers
    ]
