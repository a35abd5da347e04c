"""A gate folded into a checkpoint on disk: the numbers of `fold`, and nothing else changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from helpers import tiny_models, tiny_vision_models
from safetensors.torch import load_file, save_file

from truthgate_eval.errors import GateError, ModelError, TruthGateError
from truthgate_eval.export import checkpoint as module
from truthgate_eval.export.checkpoint import export_checkpoint
from truthgate_eval.export.output import provenance
from truthgate_eval.export.skeleton import build_skeleton
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate import Gate, attach, fold, random_gate
from truthgate_eval.gating.gate_config import GateConfig

RECORD = provenance("some/model", None, GateConfig.parse("random:1").describe(), None)
VISION = ("llava", "qwen2_5_vl")


def auto(name: str) -> Any:
    return hf.AutoModelForImageTextToText if name in VISION else hf.AutoModelForCausalLM


def make(name: str, folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    model = (
        tiny_vision_models.make(name)[0].to(dtype) if name in VISION else tiny_models.tiny_model(name, dtype)
    )
    model.save_pretrained(folder, **options)
    return folder


def skeleton(folder: Path, name: str) -> Any:
    return build_skeleton(hf.AutoConfig.from_pretrained(folder), "image" if name in VISION else "text")


def a_gate(model: Any, site: Any = "post") -> Gate:
    return random_gate(find_attention_layout(model).shape, seed=1, site=site)


def write(
    source: Path, name: str, folder: Path, site: Any = "post", gate: Gate | None = None, **options: Any
) -> Path:
    model = skeleton(source, name)
    return export_checkpoint(source, model, gate or a_gate(model, site), folder, record=RECORD, **options)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "gpt_neox", "gemma2", "gemma3", *VISION])
def test_the_weights_are_those_of_fold_bit_for_bit(name: str, site: Any, dtype: Any, tmp_path: Path) -> None:
    source = make(name, tmp_path / "source", dtype)
    exported = write(source, name, tmp_path / "exported", site)
    expected = auto(name).from_pretrained(source, dtype="auto")
    fold(expected, a_gate(expected, site))
    found = auto(name).from_pretrained(exported, dtype="auto")
    assert found.dtype == dtype
    state = found.state_dict()
    assert state.keys() == expected.state_dict().keys()
    for key, value in expected.state_dict().items():
        assert torch.equal(state[key], value), key
    before, after = tensors(source), tensors(exported)
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert (
        before.keys() == after.keys() and 3 <= len(changed) <= 6
    )  # three weights, and in some classes biases


def test_shards_and_all_other_files_stay_as_they_are(tmp_path: Path) -> None:
    source = make("llama", tmp_path / "source", max_shard_size="20KB")
    tiny_models.tiny_tokenizer().save_pretrained(source)
    (source / "README.md").write_text("the source's card")
    (source / "optimizer.pt").write_text("x")
    (source / "pytorch_model.bin.index.json").write_text("{}")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool.jinja").write_text("{{ x }}")
    exported = write(source, "llama", tmp_path / "exported")
    shards = sorted(path.name for path in source.glob("*.safetensors"))
    assert len(shards) > 3 and shards == sorted(path.name for path in exported.glob("*.safetensors"))
    for name in shards:
        before, after = load_file(source / name), load_file(exported / name)
        for key, value in before.items():
            assert torch.equal(value, after[key]) == ("o_proj" not in key)
    left_out = {"README.md", "optimizer.pt", "pytorch_model.bin.index.json", *shards}
    for path in [*source.iterdir(), source / "additional_chat_templates" / "tool.jinja"]:
        target = exported / path.relative_to(source)
        if path.is_file() and path.name not in left_out:
            assert target.read_bytes() == path.read_bytes()
    assert (exported / "model.safetensors.index.json").is_file()
    assert (
        not (exported / "optimizer.pt").exists() and not (exported / "pytorch_model.bin.index.json").exists()
    )
    card = (exported / "README.md").read_text()
    assert json.loads(card.split("```json\n")[1].split("```")[0]) == RECORD


def test_indexes_of_files_that_are_left_out_are_left_out_too(tmp_path: Path) -> None:
    source = make("llama", tmp_path / "source")
    # transformers prefers the one file; vLLM would look for the shards that the index names.
    for name in ("model.safetensors.index.json", "consolidated.safetensors.index.json"):
        (source / name).write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    exported = write(source, "llama", tmp_path / "exported")
    assert not list(exported.glob("*.index.json")) and (exported / "model.safetensors").is_file()


def test_the_voices_of_an_omni_model_are_kept(tmp_path: Path) -> None:
    source = make("llama", tmp_path / "source")
    (source / "spk_dict.pt").write_bytes(b"voices")
    assert (write(source, "llama", tmp_path / "exported") / "spk_dict.pt").read_bytes() == b"voices"


@pytest.mark.parametrize("rename", [("language_model.model.", "model.language_model."), ("", "")])
def test_old_and_new_names_of_a_vision_language_model_are_found(
    rename: tuple[str, str], tmp_path: Path
) -> None:
    source = make("llava", tmp_path / "source")
    weights = tensors(source)
    assert any(key.startswith("language_model.model.layers.0") for key in weights)  # the hub's names
    renamed = {key.replace(*rename, 1) if key.startswith(rename[0]) else key: v for key, v in weights.items()}
    save_file(renamed, source / "model.safetensors", metadata={"format": "pt"})
    exported = write(source, "llava", tmp_path / "exported")
    expected = auto("llava").from_pretrained(source)
    fold(expected, a_gate(expected))
    found = auto("llava").from_pretrained(exported).state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.state_dict().items())


def test_a_checkpoint_of_the_model_without_its_head_is_found(tmp_path: Path) -> None:
    source = tmp_path / "source"
    tiny_models.tiny_model("gpt2").transformer.save_pretrained(source)
    assert "h.0.attn.c_proj.weight" in tensors(source)
    exported = write(source, "gpt2", tmp_path / "exported", "pre")
    expected = hf.AutoModelForCausalLM.from_pretrained(source)
    fold(expected, a_gate(expected, "pre"))
    found = hf.AutoModelForCausalLM.from_pretrained(exported)
    name = "transformer.h.1.attn.c_proj.weight"
    assert torch.equal(found.get_parameter(name), expected.get_parameter(name))


def test_a_shift_is_in_the_biases_and_is_refused_where_there_are_none(tmp_path: Path) -> None:
    shift = np.random.default_rng(0).normal(size=(3, 4, 8)).astype(np.float32)
    gate = Gate(np.full((3, 4), 1.5, dtype=np.float32), "pre", shift=shift)
    source = make("gpt2", tmp_path / "gpt2")
    found = hf.AutoModelForCausalLM.from_pretrained(write(source, "gpt2", tmp_path / "exported", gate=gate))
    model = hf.AutoModelForCausalLM.from_pretrained(source)
    inputs = {"input_ids": tiny_models.prompts()}
    with torch.no_grad(), attach(model, gate):
        expected = model(**inputs).logits
    with torch.no_grad():
        torch.testing.assert_close(found(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
    llama = make("llama", tmp_path / "llama")
    with pytest.raises(GateError, match=r"has none by its config.*gated_hf"):
        write(llama, "llama", tmp_path / "no", gate=gate)


def set_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_quantized_checkpoints_are_refused_with_a_way_out(tmp_path: Path) -> None:
    source = make("llama", tmp_path / "source")
    weights = tensors(source)
    key = "model.layers.1.self_attn.o_proj.weight"
    save_file(
        {**weights, key: weights[key].to(torch.float8_e4m3fn)},
        source / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ModelError, match=r"has dtype F8_E4M3: .*--format peft"):
        write(source, "llama", tmp_path / "exported")
    set_config(source, quantization_config={"quant_method": "fp8"})
    with pytest.raises(ModelError, match=r"the checkpoint is quantized: .*--format peft"):
        write(source, "llama", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_checkpoints_without_safetensors_are_refused_with_a_way_out(tmp_path: Path) -> None:
    source = make("llama", tmp_path / "source")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(
        ModelError,
        match=r"holds \['pytorch_model.bin'\], but has no model.safetensors .*: load it .* or use --format peft",
    ):
        write(source, "llama", tmp_path / "exported")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, key: w.pop(key), "the checkpoint has no tensor for model.layers.1.self_attn.o_proj.weight"),
        (lambda w, key: w.update({key.removeprefix("model."): w[key].clone()}), "several tensors"),
        (lambda w, key: w.update({key: w[key][:8].clone()}), r"has shape \(8, 32\), and "),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_the_config_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    source = make("llama", tmp_path / "source")
    weights = tensors(source)
    change(weights, "model.layers.1.self_attn.o_proj.weight")
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=message) as error:
        write(source, "llama", tmp_path / "exported")
    assert "\n" not in str(error.value) and not (tmp_path / "exported").exists()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "../../etc/x.safetensors"}}, "is no index"),
        ({"weight_map": {"a": "b.bin"}}, "is no index"),
        ({"weight_map": {}}, "is no index"),
        ([], "is no index"),
        ({"weight_map": {"a": "b.safetensors"}}, "b.safetensors is missing"),
    ],
)  # fmt: skip
def test_a_wrong_index_is_refused(index: Any, message: str, tmp_path: Path) -> None:
    source = make("llama", tmp_path / "source")
    (source / "model.safetensors").rename(source / "x.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=message):
        write(source, "llama", tmp_path / "exported")


def test_an_export_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make("llama", tmp_path / "source")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_tensor", full)
    with pytest.raises(TruthGateError, match=r"cannot write to .*exported: No space left on device"):
        write(source, "llama", tmp_path / "exported")
    monkeypatch.undo()
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(TruthGateError, match=r"has 1\.0 kB free, and the checkpoint takes [\d.]+ kB: choose"):
        write(source, "llama", tmp_path / "exported")
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")) == ["source"]


def test_the_model_itself_is_never_replaced(tmp_path: Path) -> None:
    source = make("llama", tmp_path / "source")
    before = (source / "model.safetensors").read_bytes()
    for folder in (source, tmp_path):
        with pytest.raises(TruthGateError, match="is the folder of the model itself"):
            write(source, "llama", folder, overwrite=True)
    assert (source / "model.safetensors").read_bytes() == before
