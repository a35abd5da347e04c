"""Requests that `hf` refuses or warns of, and models that compute more than their decoder does."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from helpers import tiny_models as factories
from helpers.command_line import probe
from lm_eval.api.instance import Instance
from lm_eval.models.hf_steered import SteeredModel
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer

from truthgate_eval.errors import DataError, GateError, ModelError, TaskError
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.lm_eval import probing
from truthgate_eval.harness.lm_eval.model import GatedHF
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample

MERGES = [("w", "o"), ("wo", "r"), ("l", "d"), ("wor", "ld")]


def merging_tokenizer() -> Any:
    """The tiny byte-level tokenizer, which writes `world` as one token."""
    fast = factories.tiny_tokenizer()
    settings = json.loads(fast.backend_tokenizer.to_str())
    model = settings["model"]
    for left, right in MERGES:
        model["vocab"][left + right] = len(model["vocab"])
    model["merges"] = [list(pair) for pair in MERGES]
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(settings)),
        pad_token="<pad>", bos_token="<s>", eos_token="</s>",
    )  # fmt: skip


@pytest.fixture(scope="module")
def merging_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    tokenizer = merging_tokenizer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factories, "tiny_tokenizer", lambda: tokenizer)
        yield factories.save_tiny_checkpoint(tmp_path_factory.mktemp("merging"))


@pytest.fixture(scope="module", params=["auto", "off"])
def ours(merging_checkpoint: str, request: pytest.FixtureRequest) -> GatedHF:
    return GatedHF(
        merging_checkpoint, scores="none", batch_size=4, max_length=32, device="cpu", engine=request.param
    )


@pytest.fixture(scope="module")
def theirs(merging_checkpoint: str) -> HFLM:
    return HFLM(merging_checkpoint, batch_size=4, max_length=32, device="cpu")


def pairs(*texts: tuple[str, str]) -> list[Instance]:
    return [Instance("loglikelihood", {}, text, i) for i, text in enumerate(texts)]


GOOD = ("The hello", " world")


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (("The hello wor", "ld"), "answer 'ld' has no token of its own after 'The hello wor'"),
        (("The hello", ""), "answer '' has no token of its own after 'The hello'"),
        (("", "<s>"), "answer '<s>' has no token of its own after ''"),
        (("", ""), "answer '' to an empty context has no token"),
        ((" ", "hello"), "answer 'hello' has no token before it: the context is ' '"),
        (("The hello", " hi" * 11), "has 33 tokens, more than the 32 that the model takes"),
    ],
)
@pytest.mark.parametrize("others", [(), (GOOD,)])
def test_requests_that_hf_stops_at_are_refused_in_one_line(
    refused: tuple[str, str], message: str, others: tuple[Any, ...], ours: GatedHF, theirs: HFLM
) -> None:
    requests = pairs(*others, refused)
    with pytest.raises((AssertionError, IndexError)):
        theirs.loglikelihood(requests, disable_tqdm=True)
    with pytest.raises(DataError) as caught:
        ours.loglikelihood(requests, disable_tqdm=True)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_requests_that_hf_answers_are_answered(ours: GatedHF, theirs: HFLM) -> None:
    requests = pairs(GOOD, ("The hello wor", "ld is"), ("", "world"), ("a ", "world"), ("a", " hi" * 10))
    found, expected = (lm.loglikelihood(requests, disable_tqdm=True) for lm in (ours, theirs))
    for mine, other in zip(found, expected, strict=True):
        assert mine == (pytest.approx(other[0], abs=1e-4), other[1])
    assert ours.loglikelihood([], disable_tqdm=True) == []


def test_a_context_that_is_cut_is_said(
    ours: GatedHF, theirs: HFLM, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # lm-eval's command line, run in this process by other tests, takes its log away from pytest.
    monkeypatch.setattr(logging.getLogger("lm_eval"), "propagate", True)
    caplog.set_level(logging.WARNING, "lm_eval")
    at_the_limit, longer = ("a" * 27, " hello"), ("a" * 40, " hello")
    for requests, is_cut in ((pairs(at_the_limit, GOOD), False), (pairs(longer, at_the_limit), True)):
        for lm in (ours, theirs):
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                lm.loglikelihood(requests, disable_tqdm=True)
            # A set: pytest sees a line of lm-eval's logger twice once lm-eval has set its log up.
            said = {record.getMessage() for record in caplog.records if "Combined" in record.msg}
            said |= {text for text in caplog.messages if "1 of 2 requests are longer" in text}
            assert len(said) == is_cut, (lm, caplog.messages)


def test_generation_settings_that_are_no_dictionary_are_left_to_hf(ours: GatedHF, theirs: HFLM) -> None:
    errors = []
    for lm in (ours, theirs):
        with pytest.raises(Exception) as caught:
            lm.generate_until([Instance("generate_until", {}, ("a", "until=b"), 0)], disable_tqdm=True)
        errors.append((caught.type, str(caught.value)))
    assert errors[0] == errors[1]


@pytest.fixture
def steering(tmp_path: Path) -> str:
    vector = {"steering_vector": torch.ones(32), "steering_coefficient": 4.0, "action": "add"}
    torch.save({"layers.1": vector}, tmp_path / "steer.pt")
    return str(tmp_path / "steer.pt")


class SteeredGated(SteeredModel, GatedHF):
    """A user's model that overrides how `hf` runs its model."""


def test_a_subclass_with_a_pass_of_its_own_answers_by_that_pass(checkpoint: str, steering: str) -> None:
    requests = pairs(GOOD, ("The hello", " there"))
    expected = SteeredModel(checkpoint, steering, device="cpu").loglikelihood(requests, disable_tqdm=True)
    assert expected != HFLM(checkpoint, device="cpu").loglikelihood(requests, disable_tqdm=True)
    lm = SteeredGated(checkpoint, steering, device="cpu", scores="none")
    assert lm.shared_model is None
    assert lm.loglikelihood(requests, disable_tqdm=True) == expected


def test_a_model_that_answers_with_more_than_its_transformers_model_is_not_probed(
    checkpoint: str, halueval_folder: str, steering: str, tmp_path: Path
) -> None:
    done = probe(
        f"{checkpoint},steer_path={steering}", halueval_folder, "--model", "steered", "--output", "a.npz",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1 and not (tmp_path / "a.npz").exists()
    [line] = done.stderr.splitlines()
    assert "SteeredModel._model_call" in line and "use --model hf" in line


@pytest.mark.slow
def test_mixed_precision_is_probed_as_it_answers_and_recorded(
    checkpoint: str, halueval_folder: str, tmp_path: Path
) -> None:
    found = {}
    for name, argument in (("mixed", ",mixed_precision_dtype=bfloat16"), ("plain", "")):
        done = probe(
            checkpoint + argument, halueval_folder, "--limit", "20", "--output", f"{name}.npz", cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        found[name] = TruthScores.load(tmp_path / f"{name}.npz")
    assert found["mixed"].metadata["mixed_precision_dtype"] == "bfloat16"
    assert "mixed_precision_dtype" not in found["plain"].metadata
    weights = [found[name].probe_weight for name in ("mixed", "plain")]
    assert not (weights[0] == weights[1]).all()


@pytest.fixture(scope="module")
def probed(merging_checkpoint: str) -> HFLM:
    return probing.load_lm(
        "hf", {"pretrained": merging_checkpoint, "max_length": 32}, batch_size=4, device="cpu"
    )


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (
            "hf",
            {"contrast": 0.5},
            "without a gate and without a contrast: leave contrast out of --model_args",
        ),
        ("hf", {"scores": "random:1"}, "leave scores out"),
        ("hf", {"scores": "none", "lam": "kl:0.05"}, "leave lam out"),
        ("hf", {"yes_offset": 2}, "leave yes_offset out"),
        (
            "gated_hf",
            {"scores": "random:1", "contrast": 0.5},
            "only answers depend on it.*leave contrast out",
        ),
        ("gated_hf", {"scores": "none", "yes_offset": 2}, "leave yes_offset out"),
        ("gated_hf", {"scores": "random:1", "lam": "kl:0.05"}, "lam=kl:0.05 is found on a run's requests"),
    ],
)
def test_model_arguments_that_change_nothing_that_is_probed_are_refused(
    model: str, arguments: dict[str, Any], message: str, checkpoint: str
) -> None:
    with pytest.raises((ModelError, GateError), match=message):
        probing.load_lm(model, {"pretrained": checkpoint, **arguments}, batch_size=4, device="cpu")


def test_the_device_may_be_a_model_argument(checkpoint: str) -> None:
    given = {"pretrained": checkpoint, "scores": "none", "device": "cpu"}
    for model in ("hf", "gated_hf"):
        assert probing.load_lm(model, given, batch_size=4, device=None).device.type == "cpu"


def one_answer(context: str, answer: str) -> ProbeDataset:
    return ProbeDataset([ProbeExample(context, answer, True, 0)], {}, {})


@pytest.mark.parametrize(
    ("context", "answer", "message"),
    [
        ("The hello wor", "ld", "has no token of its own after 'The hello wor'"),
        ("The hello", "", "has no token of its own after 'The hello'"),
        ("", "", "has no token of its own after ''"),
        ("The hello", " hi" * 11, "has 33 tokens, more than the 32"),
    ],
)
def test_an_answer_without_a_token_of_its_own_is_not_probed(
    context: str, answer: str, message: str, probed: HFLM
) -> None:
    with pytest.raises(DataError, match=message):
        probing.tokenize(probed, one_answer(context, answer))


def test_a_probed_context_that_is_cut_is_said(probed: HFLM, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(probing.tokenize(probed, one_answer("a" * 26, " hello")).tokens[0]) == 32
        assert not caplog.messages
        [tokens] = probing.tokenize(probed, one_answer("a" * 40, " hello")).tokens
    assert tokens == probed.tok_encode("a" * 26 + " hello")
    assert caplog.messages == [
        "1 of 1 sequences are longer than the model's 32 tokens: their contexts are cut from the left"
    ]


@pytest.mark.parametrize(("choice", "chosen"), [("", None), (" ", [0])])
def test_an_empty_answer_of_a_task_is_refused(choice: str, chosen: list[int] | None) -> None:
    instance = Instance("loglikelihood", {}, ("Is it?", choice), 0, metadata=("t", 0, 1))
    task = SimpleNamespace(
        config=SimpleNamespace(metadata=None), instances=[instance], multiple_input=False,
        doc_to_choice=lambda _: ["", "no"], doc_to_target=lambda _: 0,
    )  # fmt: skip
    with pytest.raises(TaskError, match="task 't', document 0: answer 0 is empty"):
        probing._collect("t", task, chosen, [], {})


def install_bitsandbytes(monkeypatch: pytest.MonkeyPatch, spec: object | None) -> None:
    """Let it look as if bitsandbytes were installed, or not."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: spec if name == "bitsandbytes" else find_spec(name, *rest),
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"load_in_4bit": True}, {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}),
        (
            {"load_in_4bit": True, "dtype": "float16", "bnb_4bit_quant_type": "nf4"},
            {"load_in_4bit": True, "bnb_4bit_compute_dtype": "float16", "bnb_4bit_quant_type": "nf4"},
        ),
        (
            {"load_in_4bit": 1, "bnb_4bit_compute_dtype": "torch.float32", "bnb_4bit_use_double_quant": True},
            {"load_in_4bit": True, "bnb_4bit_compute_dtype": "float32", "bnb_4bit_use_double_quant": True},
        ),
        (
            {"load_in_8bit": True, "llm_int8_threshold": 5.0},
            {"load_in_8bit": True, "llm_int8_threshold": 5.0},
        ),
        ({"load_in_4bit": False, "load_in_8bit": False}, {}),
    ],
)
def test_quantization_at_load_reaches_transformers_as_its_config(
    options: dict[str, Any], expected: dict[str, Any], checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What transformers is given is compared; `test_quantized.py` loads such models."""
    given: dict[str, Any] = {}

    def from_pretrained(*_: Any, **arguments: Any) -> Any:
        given.update(arguments)
        raise OSError("seen enough")

    install_bitsandbytes(monkeypatch, object())
    monkeypatch.setattr(hf.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(ModelError, match="seen enough"):
        GatedHF(checkpoint, scores="none", device="cpu", **options)
    config = given["quantization_config"]
    assert not {"load_in_4bit", "load_in_8bit", *expected} & given.keys()
    if not expected:
        assert config is None
        return
    found = config.to_dict()
    assert {name: found[name] for name in expected} == expected
    assert found["load_in_4bit"] != found["load_in_8bit"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"load_in_4bit": True, "load_in_8bit": True}, "load_in_4bit and load_in_8bit exclude each other"),
        ({"bnb_4bit_quant_type": "nf4"}, "bnb_4bit_quant_type needs load_in_4bit=True or load_in_8bit=True"),
        ({"load_in_8bit": "maybe"}, "load_in_8bit=maybe is neither True nor False"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp5"}, "unknown bnb_4bit_quant_type 'fp5'"),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": "float3"}, "takes no such options: .* 'float3'"),
        ({"load_in_8bit": True, "llm_int8_threshold": "x"}, "takes no such options: llm_int8_threshold"),
        ({"load_in_4bit": True, "autogptq": True}, "autogptq and bitsandbytes' load_in_4bit"),
    ],
)
def test_quantization_that_cannot_be_is_refused_in_one_line(
    options: dict[str, Any], message: str, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_bitsandbytes(monkeypatch, object())
    with pytest.raises(ModelError, match=message) as caught:
        GatedHF(checkpoint, scores="none", device="cpu", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["load_in_4bit", "load_in_8bit"])
def test_quantization_at_load_names_the_package_that_it_needs(
    name: str, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_bitsandbytes(monkeypatch, None)
    with pytest.raises(ModelError, match=f"{name} needs the package bitsandbytes: pip install bitsandbytes"):
        GatedHF(checkpoint, scores="none", device="cpu", **{name: True})
