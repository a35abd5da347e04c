"""What a model itself makes of the answers that it is probed on, against transformers' own passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_vision_models as factories_vlm

from truthgate_eval.harness.lm_eval.answer_reader import TextAnswerReader
from truthgate_eval.harness.lm_eval.probing import load_lm
from truthgate_eval.harness.lmms_eval.answer_reader import ImageAnswerReader
from truthgate_eval.harness.lmms_eval.probing import load_for_probing
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample
from truthgate_eval.probing.own_answers import measure_own_answers, unlikely_answers

WORDS = {"answer_words": ["Yes", "No"]}


def text_log_probability(lm: Any, context: str, answer: str) -> float:
    """Of all the answer's tokens, by one plain pass."""
    start, whole = lm.tok_encode(context), lm.tok_encode(context + answer)
    with torch.no_grad():
        rows = lm.model(torch.tensor([whole])).logits[0].float().log_softmax(-1)
    return sum(float(rows[i - 1, whole[i]]) for i in range(len(start), len(whole)))


def text_questions(count: int, settings: dict[str, Any]) -> ProbeDataset:
    examples = [
        ProbeExample(f"Is it {n}? Answer:", f" {answer}", (answer == "Yes") == (n % 3 == 0), n)
        for n in range(count)
        for answer in ("Yes", "No")
    ]
    return ProbeDataset(examples, {}, settings)


def test_text_answers_are_as_likely_as_in_plain_passes(checkpoint: str) -> None:
    lm = load_lm("hf", {"pretrained": checkpoint}, batch_size=4, device="cpu")
    data = text_questions(7, WORDS)
    found = measure_own_answers(data, TextAnswerReader(lm))
    log_probs = np.array([text_log_probability(lm, one.context, one.answer) for one in data.examples])
    pairs = log_probs.reshape(-1, 2)
    right = np.array([one.truthful for one in data.examples]).reshape(-1, 2)
    assert found["documents"] == 7
    assert found["log_probability"] == pytest.approx(pairs[right].mean(), abs=1e-4)
    assert found["accuracy"] == pytest.approx((pairs[right] > pairs[~right]).mean(), abs=1e-6)
    [probed] = [one for one in found["spellings"] if one.get("probed")]
    assert probed["answers"] == [" Yes", " No"]
    assert probed["log_probability"] == found["words"]
    assert found["words"] == pytest.approx(np.logaddexp(*pairs.T).mean(), abs=1e-4)
    shouted = next(one for one in found["spellings"] if one["answers"] == ["YES", "NO"])
    expected = np.mean(
        [
            np.logaddexp(*(text_log_probability(lm, one.context, word) for word in ("YES", "NO")))
            for one in data.examples[::2]
        ]
    )
    assert shouted["log_probability"] == pytest.approx(expected, abs=1e-4)
    assert len(found["spellings"]) == 6 and found["says"]  # a random model says neither yes nor no
    values = [one["log_probability"] for one in found["spellings"]]
    assert values == sorted(values, reverse=True)


def test_answers_that_are_no_words_have_no_spellings(checkpoint: str) -> None:
    lm = load_lm("hf", {"pretrained": checkpoint}, batch_size=4, device="cpu")
    found = measure_own_answers(text_questions(3, {}), TextAnswerReader(lm))
    assert set(found) == {"documents", "accuracy", "log_probability"}


def test_many_documents_are_sampled_and_a_repeated_one_counts_once(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("truthgate_eval.probing.own_answers._MOST_DOCUMENTS", 5)
    lm = load_lm("hf", {"pretrained": checkpoint}, batch_size=4, device="cpu")
    data = text_questions(9, {})
    found = measure_own_answers(data, TextAnswerReader(lm))
    assert found["documents"] == 5
    every_second = [one for one in data.examples if one.group % 2 == 0]
    again = ProbeDataset(every_second + every_second[:2], {}, {})
    assert measure_own_answers(again, TextAnswerReader(lm)) == found


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_answers_about_images_are_as_likely_as_in_the_models_own_passes(
    name: str, shares: bool, vlm_checkpoint: Callable[[str], str]
) -> None:
    arguments = {"pretrained": vlm_checkpoint(name), "dtype": "float32"}
    vlm = load_for_probing("vlm", arguments, device="cpu", chat=True)
    images = [factories_vlm.random_image(n, (30 + 10 * n, 40)) for n in range(3)]
    examples = [
        ProbeExample(
            f"Is it {n}?", f" {answer}", (answer == "Yes") == (n == 1), n, lambda n=n: [images[n % 3]]
        )
        for n in range(5)
        for answer in ("Yes", "No")
    ]
    reader = ImageAnswerReader(vlm, bare_questions=False, batch_size=3)
    assert reader._engine is not None
    if not shares:
        reader._engine = None
    found = measure_own_answers(ProbeDataset(examples, {}, WORDS), reader)
    values = []
    for one in examples:
        text = reader.write(one)
        [(loss, _)] = vlm.losses([text.prompt], [text.answer], [one.load_images()])  # type: ignore[misc]
        values.append(-loss * vlm.new_tokens(text.prompt, text.answer))
    pairs = np.array(values).reshape(-1, 2)
    right = np.array([one.truthful for one in examples]).reshape(-1, 2)
    assert found["log_probability"] == pytest.approx(pairs[right].mean(), abs=1e-4)
    assert found["words"] == pytest.approx(np.logaddexp(*pairs.T).mean(), abs=1e-4)
    assert found["accuracy"] == pytest.approx((pairs[right] > pairs[~right]).mean(), abs=1e-6)


def own(words: float, other: float, format: str = "task") -> dict[str, Any]:
    """Metadata of an artifact whose probed words have one probability, and another spelling another."""
    spellings = [
        {"answers": [" yes", " no"], "log_probability": math.log(words), "probed": True},
        {"answers": ["Yes", "No"], "log_probability": math.log(other)},
        {"answers": ["YES", "NO"], "log_probability": -20.0},
    ]
    spellings.sort(key=lambda one: -float(one["log_probability"]))  # type: ignore[arg-type]
    measured = {"words": math.log(words), "spellings": spellings, "says": "Yes,"}
    return {"own_answers": measured, "format": format}


def test_words_that_the_model_would_hardly_say_are_named_with_the_likelier_spelling() -> None:
    assert unlikely_answers(own(0.003, 0.97, "authors")) == (
        'the model would say the probed answers " yes" and " no" in 0.3 % of cases, and "Yes" and "No" in 97 %; '
        "most of its own answers begin with 'Yes,': --format task asks as it is evaluated"
    )
    text = str(unlikely_answers(own(0.7, 0.8)))
    assert '" yes" and " no" in 70 % of cases, and "Yes" and "No" in 80 %;' in text
    assert text.endswith("say little about the answers that it would give")
    assert 'and "Yes"' not in str(unlikely_answers(own(0.05, 0.01)))


def test_words_that_the_model_says_are_not_warned_of() -> None:
    assert unlikely_answers(own(0.6, 0.3)) is None
    assert unlikely_answers(own(0.4, 0.3)) is not None
    assert unlikely_answers({}) is None
    assert unlikely_answers({"own_answers": {"documents": 3, "accuracy": 0.5}}) is None
