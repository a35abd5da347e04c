from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny_vision_models as factories

from truthgate_eval.attribution.gradient import gate_gradients
from truthgate_eval.attribution.image_answers import features_digest, tokenize_with_images
from truthgate_eval.attribution.log_odds import answer_documents
from truthgate_eval.gating.attention_layout import Site, find_attention_layout
from truthgate_eval.gating.gate import Gate, attach
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


def plain_log_odds(vlm: VisionLanguageModel, data: ProbeDataset, group: int) -> float:
    """From the model's own forward pass, one sequence at a time."""
    log_probs = {}
    for example in data.examples:
        if example.group == group:
            images = list(example.load_images())
            text = write_prompt(vlm, example, 1, bare_question=True)
            prompt = text.removesuffix(example.answer.strip()).rstrip()  # " Y" may be one token
            answer = text.removeprefix(prompt)
            ((loss, _),) = vlm.losses([prompt], [answer], [images])
            count = vlm.new_tokens(prompt, answer)
            log_probs[example.truthful] = -loss * count
    return log_probs[True] - log_probs[False]


@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_gradients_with_images_equal_finite_differences_of_a_gate(
    name: str, site: Site, tmp_path: Path
) -> None:
    vlm = load(name, tmp_path)
    layout = find_attention_layout(vlm.model)
    data, _ = dataset()
    model, tokens = tokenize_with_images(self_check.load(vlm, layout.decoder), data)
    documents = answer_documents(tokens, data.labels, data.groups)
    gradients, odds = gate_gradients(model, layout, documents, site=site, batch_size=2)
    for i, document in enumerate(documents):
        assert odds[i] == pytest.approx(plain_log_odds(vlm, data, document.group), abs=1e-3)
    layer, head = 1, 2
    for i, document in enumerate(documents):
        values = []
        for step in (1e-2, -1e-2):
            gate = np.ones(layout.shape, dtype=np.float32)
            gate[layer, head] += step
            with attach(vlm.model, Gate(gate, site), layout=layout):
                values.append(plain_log_odds(vlm, data, document.group))
        difference = (values[0] - values[1]) / 2e-2
        assert gradients[i, layer, head] == pytest.approx(difference, rel=1e-2, abs=1e-3)


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
