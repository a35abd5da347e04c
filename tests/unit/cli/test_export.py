"""`truthgate export` and `truthgate import` of what it wrote."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from helpers.command_line import Done, truthgate

from truthgate_eval.export.source import ModelSource
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate import attach
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.packaged.smollm2 import SMOLLM2_HUB

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
    assert found.metadata["kind"] == "gate" and found.metadata["model"] == Path(checkpoint).name
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


@pytest.mark.parametrize("format", ["peft", "checkpoint"])
@pytest.mark.parametrize("form", ["{}", "shuffled:{}:3"])
def test_no_folder_of_this_machine_is_written_into_an_export(
    format: str, form: str, checkpoint: str, scores: str, tmp_path: Path
) -> None:
    source = TruthScores.load(scores)
    TruthScores(source.scores, metadata={"model": checkpoint, "task": "t"}).save(scores)
    arguments = f"scores={form.format(scores)},lam=1,norm=centered"
    assert export(checkpoint, arguments, "--format", format, cwd=tmp_path).returncode == 0
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        assert str(Path(checkpoint).parent).encode() not in content, path.name
        assert str(tmp_path).encode() not in content, path.name
    card = (tmp_path / "out" / "README.md").read_text()
    record = json.loads(card.split("```json\n")[1].split("```")[0])
    assert record["model"] == record["gate"]["probed"]["model"] == Path(checkpoint).name
    assert record["gate"]["scores"] == form.format(Path(scores).name)
    assert "base_model:" not in card  # the hub refuses cards that name no model of the hub


def test_the_card_has_the_hub_id_of_the_packaged_model(scores: str) -> None:
    assert ModelSource("smollm2-135m-instruct", ".", "text", None).base_model == SMOLLM2_HUB
    assert ModelSource("owner/repo", "owner/repo", "text", None).base_model == "owner/repo"


def test_overwrite_replaces_neither_the_model_itself_nor_a_folder_in_use(
    checkpoint: str, scores: str, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    before = sorted(path.name for path in model.iterdir())
    for format in ("peft", "checkpoint"):
        options = (
            "--model_args",
            f"pretrained={model},scores={scores},lam=1,norm=centered",
            "--format",
            format,
        )
        done = truthgate("export", *options, "--output", "model", "--overwrite", cwd=tmp_path)
        assert done.returncode == 1 and "the folder of the model itself" in done.stderr
        inside = tmp_path / f"in_{format}"
        shutil.copytree(checkpoint, inside)
        for here in (".", ".."):
            done = truthgate("export", *options, "--output", here, "--overwrite", cwd=inside)
            assert done.returncode == 1 and "cannot be replaced as a whole" in done.stderr, done.stderr
        assert sorted(path.name for path in inside.iterdir()) == before
    assert sorted(path.name for path in model.iterdir()) == before


def test_import_of_a_bare_array_still_asks_for_the_model_and_the_task(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((3, 4)))
    done = truthgate("import", "a.npy", "-o", "x.npz", "--model", "m", cwd=tmp_path)
    assert done.returncode == 1 and "give --task" in done.stderr
