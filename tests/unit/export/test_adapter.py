"""A gate as an IA3 adapter: PEFT computes what the live gate computes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from helpers import tiny_models, tiny_vision_models

from truthgate_eval.errors import GateError, TruthGateError
from truthgate_eval.export.adapter import export_adapter
from truthgate_eval.export.output import provenance
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate import Gate, attach, make_gate, random_gate
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.scores import TruthScores

RECORD = provenance("some/model", None, GateConfig.parse("random:1").describe(), None)


def write(model: Any, gate: Gate, folder: Path, **options: Any) -> Path:
    return export_adapter(model, gate, folder, record=RECORD, base_model="some/model", **options)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=tiny_models.prompts()).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_peft_gives_the_logits_of_the_live_gate_bit_for_bit(
    name: str, site: Any, dtype: Any, tmp_path: Path
) -> None:
    model = tiny_models.tiny_model(name, dtype)
    gate = random_gate(find_attention_layout(model).shape, seed=1, site=site)
    plain = logits(model)
    with attach(model, gate):
        expected = logits(model)
    assert not torch.equal(plain, expected)
    adapted = peft.PeftModel.from_pretrained(model, str(write(model, gate, tmp_path / "adapter")))
    assert torch.equal(logits(adapted), expected)
    if dtype == torch.float32:  # merging rounds in another place
        torch.testing.assert_close(logits(adapted.merge_and_unload()), expected, atol=1e-4, rtol=1e-4)


def test_only_the_language_models_projections_are_scaled(tmp_path: Path) -> None:
    model, _ = tiny_vision_models.make("qwen2_5_vl")
    gate = random_gate((3, 4), seed=1, site="pre")
    folder = write(model, gate, tmp_path / "adapter", modality="image")
    adapted = peft.PeftModel.from_pretrained(model, str(folder))
    names = [name for name, module in adapted.base_model.model.named_modules() if hasattr(module, "ia3_l")]
    assert names == [f"model.language_model.layers.{n}.self_attn.o_proj" for n in range(3)]


@pytest.mark.parametrize("site", ["post", "pre"])
def test_the_adapter_is_read_as_the_same_gate(site: Any, tmp_path: Path) -> None:
    model = tiny_models.tiny_model("llama")
    gate = make_gate(np.linspace(0.4, 0.9, 12).reshape(3, 4), lam=3.0, norm="centered", site=site)
    config = GateConfig.parse(str(write(model, gate, tmp_path / "adapter")))
    again = config.gate(find_attention_layout(model), "llama")
    assert again.site == site
    np.testing.assert_allclose(again.values, gate.values, atol=1e-7)


def test_a_gate_that_selects_heads_is_an_adapter_too(tmp_path: Path) -> None:
    model = tiny_models.tiny_model("llama")
    config = GateConfig.parse("random:3", action="select", top=2, bottom=2)
    gate = config.gate(find_attention_layout(model), "llama")
    with attach(model, gate):
        expected = logits(model)
    adapted = peft.PeftModel.from_pretrained(model, str(write(model, gate, tmp_path / "adapter")))
    assert torch.equal(logits(adapted), expected)


def test_the_card_and_the_header_have_the_provenance(tmp_path: Path) -> None:
    folder = write(tiny_models.tiny_model("llama"), random_gate((3, 4), seed=1), tmp_path / "adapter")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n") and 'base_model: "some/model"' in card and "scores=random:1" in card
    assert json.loads(card.split("```json\n")[1].split("```")[0]) == RECORD
    assert TruthScores.load(folder).metadata["gate"] == RECORD["gate"]
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "some/model"


def test_what_no_adapter_can_hold_is_refused_with_a_way_out(tmp_path: Path) -> None:
    model = tiny_models.tiny_model("llama")
    ones = np.ones((3, 4), dtype=np.float32)
    shift = Gate(ones, "pre", shift=np.ones((3, 4, 8), dtype=np.float32))
    with pytest.raises(GateError, match="--format checkpoint"):
        write(model, shift, tmp_path / "adapter")
    with pytest.raises(GateError, match="positions=last cannot be exported"):
        write(model, dataclasses.replace(random_gate((3, 4), seed=1), positions="last"), tmp_path / "adapter")
    with pytest.raises(GateError, match="the gate has 2 layers x 4 heads"):
        write(model, random_gate((2, 4), seed=1), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_folder_in_use_is_replaced_only_if_it_is_an_export(tmp_path: Path) -> None:
    model, gate = tiny_models.tiny_model("llama"), random_gate((3, 4), seed=1)
    folder = write(model, gate, tmp_path / "adapter")
    with pytest.raises(TruthGateError, match=r"is not empty.*--overwrite"):
        write(model, gate, folder)
    (folder / "old.txt").write_text("x")
    write(model, random_gate((3, 4), seed=2), folder, overwrite=True)
    assert not (folder / "old.txt").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("x")
    (mine / "config.json").write_text('{"of": "another program"}')
    with pytest.raises(TruthGateError, match="--overwrite leaves it alone"):
        write(model, gate, mine, overwrite=True)
    with pytest.raises(TruthGateError, match="is a file"):
        write(model, gate, mine / "thesis.txt", overwrite=True)
    assert (mine / "thesis.txt").read_text() == "x"


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write(tiny_models.tiny_model("llama"), random_gate((3, 4), seed=1), tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "adapter_config.json").is_file()
