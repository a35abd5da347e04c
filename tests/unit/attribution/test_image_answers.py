from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_vision_models as factories
from helpers.finite_differences import gate_derivatives

from truthgate_eval.attribution.gradient import gate_gradients
from truthgate_eval.attribution.image_answers import features_digest, tokenize_with_images
from truthgate_eval.attribution.log_odds import answer_documents
from truthgate_eval.gating.attention_layout import Site, find_attention_layout
from truthgate_eval.harness.lmms_eval.probing import load_for_probing
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample
from truthgate_eval.probing.image_conditions import write_prompt
from truthgate_eval.vision import self_check
from truthgate_eval.vision.model import VisionLanguageModel


def load(name: str, folder: Path) -> VisionLanguageModel:
    arguments = {"pretrained": factories.save(folder, name), "dtype": "float32"}
    return load_for_probing("vlm", arguments, device="cpu", chat=True)


def dataset() -> tuple[ProbeDataset, dict[int, int]]:
    """Two questions about one image, one about another, one about none of them twice."""
    examples, image_of = [], {}
    for group, (question, image, right) in enumerate(
        [("Is there a dog?", 0, "Yes"), ("Is it a cat?", 0, "No"), ("Is there a tree?", 1, "No")]
    ):
        image_of[group] = image
        load_images = partial(lambda seed: [factories.random_image(seed)], image)
        for answer in ("Yes", "No"):
            examples.append(ProbeExample(question, f" {answer}", answer == right, group, load_images, image))
    return ProbeDataset(examples, {}, {}, bare_questions=True), image_of


def plain_inputs(vlm: VisionLanguageModel, data: ProbeDataset, group: int) -> dict[bool, dict[str, Any]]:
    """The processor's own inputs of the right and of the wrong sequence, in float64."""
    found = {}
    for example in data.examples:
        if example.group == group:
            images = list(example.load_images())
            inputs = vlm.encode([write_prompt(vlm, example, 1, bare_question=True)], [images])
            found[example.truthful] = {
                name: value.double() if value.is_floating_point() else value for name, value in inputs.items()
            }
    return found


def plain_log_odds(model: Any, inputs: dict[bool, dict[str, Any]]) -> float:
    """From the model's own forward pass: the tokens after those that both sequences begin with."""
    ids = {truthful: own["input_ids"][0].tolist() for truthful, own in inputs.items()}
    start = next(i for i, (a, b) in enumerate(zip(ids[True], ids[False], strict=False)) if a != b)
    log_probs = {}
    for truthful, own in inputs.items():
        with torch.no_grad():
            predicted = torch.log_softmax(model(**own).logits[0].double(), dim=-1)
        answer = range(start, len(ids[truthful]))
        log_probs[truthful] = sum(float(predicted[i - 1, ids[truthful][i]]) for i in answer)
    return log_probs[True] - log_probs[False]


@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_gradients_with_images_equal_finite_differences_of_the_scaled_weights(
    name: str, site: Site, tmp_path: Path
) -> None:
    vlm = load(name, tmp_path)
    layout = find_attention_layout(vlm.model)
    data, _ = dataset()
    model, tokens = tokenize_with_images(self_check.load(vlm, layout.decoder), data)
    documents = answer_documents(tokens, data.labels, data.groups)
    gradients, odds = gate_gradients(model, layout, documents, site=site, batch_size=2)
    exact = copy.deepcopy(vlm.model).double()
    projections = [layer.self_attn.o_proj for layer in exact.model.language_model.layers]
    for i, document in enumerate(documents):
        log_odds = partial(plain_log_odds, exact, plain_inputs(vlm, data, document.group))
        assert odds[i] == pytest.approx(log_odds(), abs=1e-3)
        expected = gate_derivatives(log_odds, projections, heads=4, site=site)
        assert np.abs(gradients[i] - expected).max() < 1e-3 * np.abs(expected).max()


def test_an_image_of_several_answers_is_encoded_once(tmp_path: Path) -> None:
    vlm = load("llava", tmp_path)
    data, _ = dataset()
    model, tokens = tokenize_with_images(self_check.load(vlm, find_attention_layout(vlm.model).decoder), data)
    assert len(model.images) == 2
    first_ids = [min(token for token in own if token >= model.first_image_id) for own in tokens]
    assert first_ids[:4] == [first_ids[0]] * 4 and first_ids[4:] == [first_ids[4]] * 2
    assert first_ids[0] != first_ids[4]
    assert features_digest(model) == features_digest(model)
    assert features_digest(model) != features_digest(model.with_images(model.images[::-1]))
