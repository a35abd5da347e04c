"""What a model itself makes of the answers that it is probed on, against transformers' own passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_vision_models as factories_vlm
from lm_eval.models.huggingface import HFLM
from transformers import GenerationConfig

from truthgate_eval.errors import DataError, ModelError
from truthgate_eval.harness.lm_eval.answer_reader import TextAnswerReader
from truthgate_eval.harness.lm_eval.probing import load_lm
from truthgate_eval.harness.lmms_eval.answer_reader import ImageAnswerReader
from truthgate_eval.harness.lmms_eval.probing import load_for_probing
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample
from truthgate_eval.probing.own_answers import AnswerText, measure_own_answers, unlikely_answers

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


class Likelihoods:
    """Answers that are as likely as a table says."""

    def __init__(self, chances: dict[str, float]) -> None:
        self.chances = chances

    def write(self, example: ProbeExample) -> AnswerText:
        return AnswerText(example.context, example.answer, example)

    def log_probabilities(self, texts: Sequence[AnswerText]) -> list[float]:
        if not self.chances.keys() >= {text.answer for text in texts}:
            raise DataError("merged")
        return [math.log(self.chances[text.answer]) for text in texts]

    def generate(self, texts: Sequence[AnswerText], max_new_tokens: int) -> list[str]:
        return [" yes"[:max_new_tokens]] * len(texts)


@pytest.mark.parametrize(("settings", "accuracy"), [({}, 1.0), (WORDS, 0.0)])
def test_a_right_answer_is_likelier_than_each_wrong_one_or_than_all_spellings_of_it(
    settings: dict[str, Any], accuracy: float
) -> None:
    reader = Likelihoods({" a": 0.4, " b": 0.3, " c": 0.25})
    examples = [ProbeExample("Which?", answer, answer == " a", 0) for answer in reader.chances]
    found = measure_own_answers(ProbeDataset(examples, {}, settings), reader)
    assert found["accuracy"] == accuracy


def test_an_answer_without_a_token_of_its_own_is_refused_whatever_the_class_of_the_model(
    checkpoint: str,
) -> None:
    reader = TextAnswerReader(HFLM(pretrained=checkpoint, device="cpu"))
    with pytest.raises(DataError, match="has no token of its own after 'Is it\\?'"):
        reader.log_probabilities([AnswerText("Is it?", "", ProbeExample("Is it?", "", True, 0))])


class ShortOfMemory:
    """A vision-language model that takes one question at a time, and its engine, which takes none."""

    name = "tiny"

    def new_tokens(self, _prompt: str, answer: str) -> int:
        return len(answer)

    def losses(self, prompts: Sequence[str], answers: Any = (), images: Any = (), **_: Any) -> Any:
        if len(prompts) != 1 or prompts[0] == "broken":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [(float(prompts[0]), True)]

    def generate(self, prompts: Sequence[str], images: Any = (), **_: Any) -> list[str]:
        return [f"{loss:g}" for loss, _ in self.losses(prompts)]


@pytest.mark.parametrize("has_engine", [True, False])
def test_questions_that_do_not_fit_in_memory_together_are_asked_one_by_one(has_engine: bool) -> None:
    vlm: Any = ShortOfMemory()
    vlm.model = SimpleNamespace(generation_config=GenerationConfig())  # whose heads cannot be found
    texts = [AnswerText(str(n), "xy", ProbeExample(f"Is it {n}?", "xy", True, n)) for n in range(5)]
    for ask, expected in (
        (lambda reader: reader.log_probabilities(texts), [-2.0 * n for n in range(5)]),
        (lambda reader: reader.generate(texts, 4), list("01234")),
    ):
        reader = ImageAnswerReader(vlm, bare_questions=False, batch_size=3)
        assert reader._engine is None
        if has_engine:
            reader._engine = vlm
            reader._image_keys = dict.fromkeys(range(5), ())
        assert ask(reader) == expected and reader._engine is None
    broken = AnswerText("broken", "xy", ProbeExample("Is it?", "xy", True, 0))
    with pytest.raises(ModelError, match="the question 'Is it\\?' failed: OutOfMemoryError: CUDA"):
        reader.log_probabilities([broken, *texts])


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
