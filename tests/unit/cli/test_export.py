"""`truthgate export` and `truthgate import` of what it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from helpers.command_line import Done, truthgate

from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate import attach
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.scores import TruthScores

Folder = Callable[[str], str]


@pytest.fixture
def scores(tmp_path: Path) -> str:
    values = np.random.default_rng(0).uniform(0.4, 0.9, (3, 4))
    return str(TruthScores(values, metadata={"model": "some/model", "task": "t"}).save(tmp_path / "a.npz"))


def export(pretrained: str, more: str, *options: str, cwd: Path) -> Done:
    return truthgate(
        "export", "--model_args", f"pretrained={pretrained},{more}", "--output", "out", *options, cwd=cwd
    )


def test_an_exported_adapter_comes_back_as_an_artifact(checkpoint: str, scores: str, tmp_path: Path) -> None:
    done = export(checkpoint, f"scores={scores},lam=2,norm=centered,dtype=float32,device=cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"3 layers x 4 heads of {checkpoint}, as an IA3 adapter -> out" in done.stdout
    done = truthgate("import", "out", "-o", "x.npz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = TruthScores.load(tmp_path / "x.npz")
    assert found.metadata["kind"] == "gate" and found.metadata["model"] == checkpoint
    assert found.metadata["task"] == "t" and "probed_by" not in found.metadata
    gate = found.metadata["gate"]
    assert gate["sha256"] == TruthScores.load(scores).fingerprint and gate["lam"] == 2.0
    layout = find_attention_layout(hf.AutoModelForCausalLM.from_pretrained(checkpoint))
    expected = GateConfig.parse(scores, lam=2, norm="centered").gate(layout, "m")
    again = GateConfig.parse(str(tmp_path / "x.npz")).gate(layout, "m")
    np.testing.assert_allclose(again.values, expected.values, atol=1e-7)


@pytest.mark.parametrize("site", ["post", "pre"])
def test_an_exported_checkpoint_has_the_logits_of_the_live_gate(
    site: str, vlm_checkpoint: Folder, scores: str, tmp_path: Path
) -> None:
    source = vlm_checkpoint("llava")
    options = ("--model", "gated_llava", "--format", "checkpoint")
    done = export(source, f"scores={scores},lam=2,norm=zscore,site={site}", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    model = hf.AutoModelForImageTextToText.from_pretrained(source)
    found = hf.AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    gate = GateConfig.parse(scores, lam=2, norm="zscore", site=site, modality="image")
    inputs = {"input_ids": torch.arange(5, 15)[None]}
    with torch.no_grad(), attach(model, gate.gate(find_attention_layout(model), "m")):
        expected = model(**inputs).logits
    with torch.no_grad():
        torch.testing.assert_close(found(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
    hf.AutoProcessor.from_pretrained(tmp_path / "out")


def test_norm_none_is_not_taken_for_no_norm(checkpoint: str, scores: str, tmp_path: Path) -> None:
    assert export(checkpoint, f"scores={scores},lam=0.5,norm=none", cwd=tmp_path).returncode == 0
    found = TruthScores.load(tmp_path / "out")
    np.testing.assert_allclose(found.scores, 0.5 * TruthScores.load(scores).scores, atol=1e-7)


def test_no_weights_are_read_for_an_adapter(checkpoint: str, scores: str, tmp_path: Path) -> None:
    folder = tmp_path / "config_only"
    folder.mkdir()
    (folder / "config.json").write_bytes(Path(checkpoint, "config.json").read_bytes())
    assert export(str(folder), f"scores={scores},lam=1", cwd=tmp_path).returncode == 0
    done = export(
        str(folder), f"scores={scores},lam=1", "--format", "checkpoint", "--overwrite", cwd=tmp_path
    )
    assert done.returncode == 1 and "no weights" in done.stderr
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["peft_type"] == "IA3"


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ("scores=SCORES,lam=1", ("--format", "onnx"), "unknown --format 'onnx'"),
        ("scores=SCORES,lam=1", ("--model", "vllm"), "--model vllm: an export takes hf, vlm"),
        ("scores=SCORES", (), "recommend no lam"),
        ("lam=1", (), "nothing to export: give scores=FILE"),
        ("scores=none", (), "there is no gate to export"),
        ("scores=SCORES,lamb=1", (), "an export takes no lamb"),
        ("scores=SCORES,lam=1,peft=some/adapter", (), "merge the adapter"),
        ("scores=SCORES,lam=1,contrast=0.5", (), "no weights can hold it"),
        ("scores=SCORES,lam=1,yes_offset=0.5", (), "yes_offset changes logits"),
        ("scores=SCORES,lam=kl:0.05", (), "lam=kl:0.05 is found by running the model"),
        ("scores=SCORES,lam=1,positions=last", (), "positions=last cannot be exported"),
        ("scores=SCORES,lam=1", ("--model", "vlm"), "takes no pictures"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    arguments: str, options: tuple[str, ...], message: str, checkpoint: str, scores: str, tmp_path: Path
) -> None:
    done = export(checkpoint, arguments.replace("SCORES", scores), *options, cwd=tmp_path)
    assert done.returncode == 1 and message in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_import_of_a_bare_array_still_asks_for_the_model_and_the_task(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 4)))
    done = truthgate("import", "a.npy", "-o", "x.npz", "--model", "m", cwd=tmp_path)
    assert done.returncode == 1 and "give --task" in done.stderr
