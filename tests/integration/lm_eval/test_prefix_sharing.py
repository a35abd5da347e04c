"""`gated_hf` with shared prefixes: the answers of `hf`, whose own path is taken where they could differ."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from truthgate_eval.data import halueval
from truthgate_eval.harness.lm_eval.model import GatedHF

PLAIN = {"until": ["\n", "ab"], "max_gen_toks": 12, "do_sample": False}


def texts(number: int) -> list[str]:
    """Varied prompts: after an instruction, in pairs, alone, equal."""
    return [
        ("Judge the answer. Say Yes or No.\n" * 4 if i % 3 else "")
        + f"{i * i % 37}: what is {i}?"
        + " so" * (i % 5)
        for i in range(number)
    ]


def requests(contexts: list[str], generation: dict[str, Any] = PLAIN) -> list[Instance]:
    return [Instance("generate_until", {}, (text, dict(generation)), i) for i, text in enumerate(contexts)]


@pytest.fixture(scope="module")
def ours(checkpoint: str) -> GatedHF:
    return GatedHF(checkpoint, scores="none", batch_size=8, device="cpu")


@pytest.fixture(scope="module")
def theirs(checkpoint: str) -> HFLM:
    return HFLM(checkpoint, batch_size=1, device="cpu")


@pytest.fixture
def own_path(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many requests `hf`'s own path answered, call by call."""
    calls: list[int] = []
    for name in ("generate_until", "_loglikelihood_tokens"):
        method = getattr(HFLM, name)

        def counted(self: Any, requests: Any, *args: Any, method: Any = method, **kwargs: Any) -> Any:
            calls.append(len(requests))
            return method(self, requests, *args, **kwargs)

        monkeypatch.setattr(HFLM, name, counted)
    return calls


def test_texts_are_those_of_hf_on_varied_prompts(ours: GatedHF, theirs: HFLM, own_path: list[int]) -> None:
    contexts = texts(60)
    found = ours.generate_until(requests([*contexts, contexts[3]]), disable_tqdm=True)
    assert own_path == []
    assert found == theirs.generate_until(requests([*contexts, contexts[3]]), disable_tqdm=True)
    assert len(set(found)) > 10


@pytest.mark.parametrize(
    "generation",
    [
        {**PLAIN, "do_sample": True, "temperature": 0.7},
        {**PLAIN, "num_beams": 2},
        {**PLAIN, "repetition_penalty": 1.5},
    ],
)
def test_what_is_not_plain_greedy_takes_the_own_path(
    generation: dict[str, Any], ours: GatedHF, own_path: list[int]
) -> None:
    mixed = [*requests(texts(3)), *requests(texts(2), generation)]
    assert len(ours.generate_until(mixed, disable_tqdm=True)) == 5
    assert own_path == [2]


def test_a_models_own_generation_defaults_are_honoured(
    ours: GatedHF, own_path: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours.model.generation_config, "repetition_penalty", 1.3)
    ours.generate_until(requests(texts(2)), disable_tqdm=True)
    assert own_path == [2]


def test_generation_settings_that_differ_are_kept_apart(ours: GatedHF, theirs: HFLM) -> None:
    short = {**PLAIN, "max_gen_toks": 3, "until": []}
    mixed = [*requests(texts(5)), *requests(texts(5), short)]
    assert ours.generate_until(mixed, disable_tqdm=True) == theirs.generate_until(mixed, disable_tqdm=True)


def test_prompts_longer_than_the_model_are_truncated_as_hf_does(checkpoint: str) -> None:
    options = {"max_length": 64, "device": "cpu"}
    ours, theirs = GatedHF(checkpoint, scores="none", **options), HFLM(checkpoint, **options)
    assert ours.generate_until(requests(texts(9)), True) == theirs.generate_until(requests(texts(9)), True)
    pairs = [Instance("loglikelihood", {}, (text, " Yes"), i) for i, text in enumerate(texts(9))]
    for found, expected in zip(
        ours.loglikelihood(pairs, True), theirs.loglikelihood(pairs, True), strict=True
    ):
        assert found == (pytest.approx(expected[0], abs=1e-4), expected[1])


def test_log_likelihoods_are_those_of_hf(ours: GatedHF, theirs: HFLM, own_path: list[int]) -> None:
    choices = [" Yes", " No", " Yes, it is", ""]
    pairs = [
        Instance("loglikelihood", {}, (text, choice or " and so on"), i)
        for i, text in enumerate(["", *texts(20)])
        for choice in choices
    ]
    found = ours.loglikelihood(pairs, disable_tqdm=True)
    assert own_path == []
    for mine, other in zip(found, theirs.loglikelihood(pairs, disable_tqdm=True), strict=True):
        assert mine == (pytest.approx(other[0], abs=1e-4), other[1])


def test_rolling_log_likelihoods_are_those_of_hf(ours: GatedHF, theirs: HFLM, own_path: list[int]) -> None:
    whole = [Instance("loglikelihood_rolling", {}, (text * 30,), i) for i, text in enumerate(texts(6))]
    found = ours.loglikelihood_rolling(whole, disable_tqdm=True)
    assert own_path == []
    assert found == pytest.approx(theirs.loglikelihood_rolling(whole, disable_tqdm=True), rel=1e-5)


def test_the_engine_can_be_switched_off(checkpoint: str, own_path: list[int]) -> None:
    lm = GatedHF(checkpoint, scores="none", engine="off", device="cpu")
    lm.generate_until(requests(texts(4)), disable_tqdm=True)
    assert own_path == [4] and lm.shared_model is None


def test_batch_size_auto_needs_no_search(
    checkpoint: str, theirs: HFLM, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = GatedHF(checkpoint, scores="none", batch_size="auto", device="cpu")
    assert lm.generate_until(requests(texts(12)), True) == theirs.generate_until(requests(texts(12)), True)
    assert "Detecting largest batch size" not in capsys.readouterr().out


@pytest.mark.real
@pytest.mark.slow
def test_on_the_real_model_200_varied_texts_are_those_of_hf() -> None:
    from truthgate_eval.packaged.smollm2 import SMOLLM2, resolve_smollm2

    questions = [row["question"] for row in itertools.islice(halueval.read_records("qa"), 200)]
    shared = "Answer each question in one short sentence.\n\n"
    contexts = [
        f"{shared if i % 3 else ''}Question: {question}\nAnswer:" for i, question in enumerate(questions)
    ]
    generation = {"until": ["\n\n"], "max_gen_toks": 16, "do_sample": False}
    expected = HFLM(resolve_smollm2(SMOLLM2), batch_size=8, device="cpu").generate_until(
        requests(contexts, generation), disable_tqdm=True
    )
    lm = GatedHF(scores="none", batch_size=8, device="cpu")
    assert lm.generate_until(requests(contexts, generation), disable_tqdm=True) == expected
    assert len(set(expected)) > 100
