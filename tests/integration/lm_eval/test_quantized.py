"""Quantized models under a gate: live and as an exported adapter, probed, and what is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import quantized_models as models
from helpers.command_line import probe_weights, truthgate
from helpers.quantized_models import BITSANDBYTES, GGUF, GGUF_FILE, QUANTIZATIONS, TORCHAO
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import PeftModel

from truthgate_eval.errors import GateError, ModelError
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.cache_keys import model_fingerprint
from truthgate_eval.harness.lm_eval.model import GatedHF
from truthgate_eval.inference.quantization import _plain_parts

Folders = Callable[..., Path]
# Eighths, so that g = 1 + 2 S is exact in float32.
SCORES = np.random.default_rng(0).integers(-5, 6, (models.LAYERS, models.HEADS)) / 8
FACTORS = 1 + 2 * SCORES


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_checkpoint(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def quantized(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The folder of a quantized checkpoint, made when it is first asked for; torchao's compute in one dtype."""

    @functools.cache
    def folder(name: str, dtype: torch.dtype = torch.float32) -> Path:
        target = tmp_path_factory.mktemp("quantized")
        if name == GGUF:
            return models.save_gguf(target)
        return models.save_quantized(name, plain, target, dtype)

    return folder


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The gate's model arguments, but for the site."""
    file = tmp_path_factory.mktemp("scores") / "s.npz"
    return f"scores={TruthScores(SCORES, metadata={'model': 'm', 'task': 't'}).save(file)},lam=2,norm=none"


@pytest.fixture(scope="module")
def adapter(plain: Path, gate: str, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """The gate at a site, exported for the plain checkpoint."""

    @functools.cache
    def folder(site: str) -> Path:
        output = tmp_path_factory.mktemp("adapter") / site
        export("peft", f"pretrained={plain},{gate},site={site}", output)
        return output

    return folder


def export(format: str, arguments: str, output: Path) -> None:
    done = truthgate("export", "--format", format, "--model_args", arguments, "--output", str(output))
    assert done.returncode == 0, done.stderr


def gated(arguments: str, **options: Any) -> GatedHF:
    return GatedHF.create_from_arg_string(arguments, {"device": "cpu", **options})


def source(name: str, plain: Path, quantized: Folders, dtype: torch.dtype = torch.float32) -> str:
    """Model arguments of a quantized model that computes in a dtype."""
    pretrained = {
        BITSANDBYTES[0]: f"{plain},load_in_8bit=True",
        BITSANDBYTES[1]: f"{plain},load_in_4bit=True,bnb_4bit_quant_type=nf4",
    }.get(name) or str(quantized(name, dtype))
    options = f",gguf_file={GGUF_FILE},tokenizer={plain}" if name == GGUF else ""
    return f"pretrained={pretrained}{options},dtype={str(dtype).removeprefix('torch.')}"


def adapted(arguments: str, adapter: Path) -> torch.Tensor:
    """Logits of a model under an adapter.

    The model is a fresh one: PEFT reads the state dict, which under bitsandbytes 0.50 changes 4-bit weights
    that have run on some CPUs (`inference.quantization.stored_tensors`).
    """
    model = gated(f"{arguments},scores=none").model
    return models.logits(PeftModel.from_pretrained(model, str(adapter)).eval())


def assert_quantized(name: str, model: Any) -> None:
    expected = {
        BITSANDBYTES[0]: ("Linear8bitLt", "Int8Params"), BITSANDBYTES[1]: ("Linear4bit", "Params4bit"),
        TORCHAO[0]: ("Linear", "Int8Tensor"), TORCHAO[1]: ("Linear", "IntxUnpackedToInt8Tensor"),
        GGUF: ("Linear", "Parameter"),  # transformers reads it as floating-point weights
    }[name]  # fmt: skip
    for module in models.output_projections(model):
        assert (type(module).__name__, type(module.get_parameter("weight")).__name__) == expected


@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_the_live_gate_and_the_adapter_scale_the_quantized_models_heads(
    name: str, site: str, plain: Path, quantized: Folders, gate: str, adapter: Folders
) -> None:
    arguments = source(name, plain, quantized)
    lm = gated(f"{arguments},{gate},site={site}")
    assert_quantized(name, lm.model)
    live = models.logits(lm.model)
    assert lm.gate_handle is not None
    lm.gate_handle.remove()
    assert (models.logits(lm.model) - live).abs().max() > 0.1
    assert torch.equal(models.gated_from_scratch(lm.model, FACTORS, site), live)
    assert torch.equal(adapted(arguments, adapter(site)), live)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_in_bfloat16_the_adapter_stops_under_bitsandbytes_and_the_live_gate_does_not(
    name: str, plain: Path, quantized: Folders, gate: str, adapter: Folders
) -> None:
    arguments = source(name, plain, quantized, torch.bfloat16)
    lm = gated(f"{arguments},{gate}")
    live = models.logits(lm.model)
    lm.gate_handle.remove()
    assert torch.equal(models.gated_from_scratch(lm.model, FACTORS, "post"), live)
    if name in BITSANDBYTES:  # PEFT's IA3 layers return float32; where this changes, the docs are wrong
        with pytest.raises(RuntimeError, match="dtype"):
            adapted(arguments, adapter("post"))
    else:
        assert torch.equal(adapted(arguments, adapter("post")), live)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_shared_prefixes_give_the_answers_of_hfs_own_path(
    name: str, plain: Path, quantized: Folders, gate: str
) -> None:
    lm = gated(f"{source(name, plain, quantized)},{gate}")
    requests = [
        Instance("loglikelihood", {}, (f"The sum of {n} and {n} is", f" {2 * n + wrong}."), n)
        for n in range(4)
        for wrong in range(2)
    ]
    assert lm.shared_model is not None
    shared = lm.loglikelihood(requests, disable_tqdm=True)
    lm.shared_model = None
    own = lm.loglikelihood(requests, disable_tqdm=True)
    assert [answer for answer, _ in shared] == pytest.approx([answer for answer, _ in own], abs=1e-3)


@pytest.mark.parametrize("name", ["bitsandbytes 4-bit", "torchao int8"])
def test_a_quantized_checkpoint_is_gated_and_exported_like_any_other(
    name: str, plain: Path, quantized: Folders, gate: str, tmp_path: Path
) -> None:
    folder = quantized(name)
    lm = gated(f"pretrained={folder},{gate},site=pre,dtype=float32")
    assert_quantized(name, lm.model)
    export("peft", f"pretrained={folder},{gate},site=pre", tmp_path / "adapter")
    theirs = HFLM(pretrained=str(folder), peft=str(tmp_path / "adapter"), device="cpu", dtype="float32")
    assert torch.equal(models.logits(theirs.model), models.logits(lm.model))
    done = truthgate(
        "export", "--format", "checkpoint", "--model_args", f"pretrained={folder},{gate}", "--output",
        str(tmp_path / "folded"),
    )  # fmt: skip
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "the checkpoint is quantized" in done.stderr and "use --format peft" in done.stderr


def test_a_gguf_file_is_exported_as_an_adapter_and_refused_as_a_checkpoint(
    plain: Path, quantized: Folders, gate: str, tmp_path: Path
) -> None:
    arguments = f"pretrained={quantized(GGUF)},gguf_file={GGUF_FILE},{gate}"
    export("peft", arguments, tmp_path / "adapter")
    loaded = source(GGUF, plain, quantized)
    live = models.logits(gated(f"{loaded},{gate}").model)
    assert torch.equal(adapted(loaded, tmp_path / "adapter"), live)
    done = truthgate(
        "export", "--format", "checkpoint", "--model_args", arguments, "--output", str(tmp_path / "folded")
    )
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert f"{GGUF_FILE} is quantized" in done.stderr and "use --format peft" in done.stderr


def test_a_gate_folds_into_the_weights_that_a_gguf_file_is_read_as(
    plain: Path, quantized: Folders, gate: str
) -> None:
    arguments = f"{source(GGUF, plain, quantized)},{gate}"
    torch.testing.assert_close(
        models.logits(gated(f"{arguments},mode=folded").model), models.logits(gated(arguments).model),
        atol=1e-5, rtol=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize("name", [*BITSANDBYTES, *TORCHAO])
def test_folding_into_quantized_weights_is_refused_with_a_way_out(
    name: str, plain: Path, quantized: Folders, gate: str
) -> None:
    with pytest.raises(
        GateError, match=r"o_proj is a .*: a gate folds only into plain .*; use mode=live"
    ) as error:
        gated(f"{source(name, plain, quantized)},{gate},mode=folded")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_probing_reads_the_quantized_models_activations(
    plain: Path, quantized: Folders, halueval_folder: str, tmp_path: Path
) -> None:
    def probe(model_args: str) -> np.ndarray:
        return probe_weights(model_args, halueval_folder, tmp_path)

    name = "bitsandbytes 4-bit"
    found = probe(source(name, plain, quantized))
    np.testing.assert_array_equal(found, probe(f"pretrained={quantized(name)},dtype=float32"))
    assert not np.allclose(found, probe(f"pretrained={plain}"), atol=1e-3)


@pytest.mark.parametrize("name", [*BITSANDBYTES, *TORCHAO])
def test_the_fingerprint_tells_quantized_weights_apart_and_leaves_them_as_they_are(
    name: str, plain: Path, quantized: Folders, gate: str
) -> None:
    lm = gated(f"{source(name, plain, quantized)},{gate}")
    before = models.logits(lm.model)
    found = model_fingerprint(lm.model, lm.tokenizer, {})
    assert torch.equal(models.logits(lm.model), before)
    with torch.no_grad():
        weight = models.output_projections(lm.model)[1].get_parameter("weight")
        for _, tensor in _plain_parts("", weight.data):
            tensor.reshape(-1)[0] += 1
    assert model_fingerprint(lm.model, lm.tokenizer, {}) != found


def test_bitsandbytes_settings_may_stay_in_the_arguments_of_an_export(
    plain: Path, gate: str, tmp_path: Path
) -> None:
    settings = "load_in_4bit=True,bnb_4bit_quant_type=nf4,bnb_4bit_use_double_quant=True"
    export("peft", f"pretrained={plain},{gate},{settings}", tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


def test_a_gguf_file_that_is_not_there_is_named(plain: Path, gate: str) -> None:
    with pytest.raises(ModelError, match=r"cannot be loaded: .*missing\.gguf"):
        gated(f"pretrained={plain},gguf_file=missing.gguf,{gate}")
