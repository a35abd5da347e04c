"""A LoRA under the gate: live, probed, refused where it cannot be exported, and the ways out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from helpers import quantized_models as models
from helpers.command_line import probe_weights, truthgate
from lm_eval.models.huggingface import HFLM
from peft import AutoPeftModelForCausalLM

from truthgate_eval.errors import GateError
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.lm_eval.model import GatedHF

SCORES = np.random.default_rng(0).integers(-5, 6, (models.LAYERS, models.HEADS)) / 8
FACTORS = 1 + 2 * SCORES
SITES = pytest.mark.parametrize("site", ["post", "pre"])
# Folded and merged weights round in other places.
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_checkpoint(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def lora(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On the output projections, too."""
    return models.save_lora(plain, tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def merged(plain: Path, lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The LoRA merged into a checkpoint, as docs/how-to.md says."""
    folder = tmp_path_factory.mktemp("merged")
    AutoPeftModelForCausalLM.from_pretrained(str(lora), dtype="auto").merge_and_unload().save_pretrained(
        folder
    )
    hf.AutoTokenizer.from_pretrained(plain).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("scores") / "s.npz"
    return f"scores={TruthScores(SCORES, metadata={'model': 'm', 'task': 't'}).save(file)},lam=2,norm=none"


def gated(arguments: str) -> GatedHF:
    return GatedHF.create_from_arg_string(arguments, {"device": "cpu"})


def export(format: str, arguments: str, output: Path) -> Any:
    return truthgate("export", "--format", format, "--model_args", arguments, "--output", str(output))


@SITES
@pytest.mark.parametrize("quantization", ["", ",load_in_4bit=True", ",load_in_8bit=True"])
def test_the_gate_scales_the_heads_of_the_adapted_projection(
    quantization: str, site: str, plain: Path, lora: Path, gate: str
) -> None:
    lm = gated(f"pretrained={plain},peft={lora},{gate},site={site},dtype=float32{quantization}")
    assert all(type(module).__module__.startswith("peft") for module in models.output_projections(lm.model))
    live = models.logits(lm.model)
    assert lm.gate_handle is not None
    lm.gate_handle.remove()
    assert (models.logits(lm.model) - live).abs().max() > 0.1
    assert torch.equal(models.gated_from_scratch(lm.model, FACTORS, site), live)
    lm.model.disable_adapter_layers()
    assert not torch.allclose(models.gated_from_scratch(lm.model, FACTORS, site), live, atol=0.1)


@SITES
def test_exports_of_the_merged_checkpoint_give_the_logits_of_the_live_gate(
    site: str, plain: Path, lora: Path, merged: Path, gate: str, tmp_path: Path
) -> None:
    live = models.logits(gated(f"pretrained={plain},peft={lora},{gate},site={site}").model)
    for format in ("peft", "checkpoint"):
        done = export(format, f"pretrained={merged},{gate},site={site}", tmp_path / format)
        assert done.returncode == 0, done.stderr
    adapted = HFLM(pretrained=str(merged), peft=str(tmp_path / "peft"), device="cpu")
    torch.testing.assert_close(models.logits(adapted.model), live, **CLOSE)
    folded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")
    torch.testing.assert_close(models.logits(folded), live, **CLOSE)


@SITES
def test_a_lora_beside_the_output_projections_runs_on_the_exported_checkpoint(
    site: str, plain: Path, gate: str, tmp_path: Path
) -> None:
    lora = models.save_lora(plain, tmp_path / "lora", ("q_proj", "v_proj"))
    live = models.logits(gated(f"pretrained={plain},peft={lora},{gate},site={site}").model)
    done = export("checkpoint", f"pretrained={plain},{gate},site={site}", tmp_path / "folded")
    assert done.returncode == 0, done.stderr
    theirs = HFLM(pretrained=str(tmp_path / "folded"), peft=str(lora), device="cpu")
    torch.testing.assert_close(models.logits(theirs.model), live, **CLOSE)
    ours = gated(f"pretrained={plain},peft={lora},{gate},site={site},mode=folded")
    torch.testing.assert_close(models.logits(ours.model), live, **CLOSE)


@pytest.mark.parametrize("format", ["peft", "checkpoint"])
def test_an_export_under_an_adapter_is_refused_with_the_ways_out(
    format: str, plain: Path, lora: Path, gate: str, tmp_path: Path
) -> None:
    done = export(format, f"pretrained={plain},peft={lora},{gate}", tmp_path / "out")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    for part in (f"peft={lora}", "merge_and_unload", "save_pretrained", "pretrained=FOLDER"):
        assert part in done.stderr, part
    assert not (tmp_path / "out").exists()


def test_folding_under_a_lora_is_refused_with_a_way_out(plain: Path, lora: Path, gate: str) -> None:
    with pytest.raises(GateError, match=r"o_proj is wrapped by an adapter: merge the adapter first"):
        gated(f"pretrained={plain},peft={lora},{gate},mode=folded")


@pytest.mark.slow
def test_probing_reads_the_adapted_models_activations(
    plain: Path, lora: Path, merged: Path, halueval_folder: str, tmp_path: Path
) -> None:
    def probe(model_args: str) -> np.ndarray:
        return probe_weights(model_args, halueval_folder, tmp_path)

    found = probe(f"pretrained={plain},peft={lora}")
    np.testing.assert_allclose(found, probe(f"pretrained={merged}"), atol=1e-2, rtol=1e-2)
    assert not np.allclose(found, probe(f"pretrained={plain}"), atol=0.1)
