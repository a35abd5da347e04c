"""Adapters are read as scores, without trust."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from truthgate_eval.errors import ScoresError
from truthgate_eval.gating.gate import make_gate
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.scores import TruthScores

VALUES = np.array([[0.5, 1.0], [1.75, 0.125], [2.0, 1.5]], dtype=np.float32)


def vectors(
    site: str = "post", pattern: str = "base_model.model.model.layers.{}.self_attn.o_proj.ia3_l"
) -> dict[str, Any]:
    dim = 1 if site == "post" else 0
    return {pattern.format(n): torch.from_numpy(row.repeat(4)).unsqueeze(dim) for n, row in enumerate(VALUES)}


def save(folder: Path, tensors: dict[str, Any], config: Any = None, metadata: Any = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "IA3"} if config is None else config)
    )
    header = {"layers": 3, "heads": 2, "model": "some/model"} if metadata is None else metadata
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"truthgate_eval": text})
    return folder


@pytest.mark.parametrize("site", ["post", "pre"])
@pytest.mark.parametrize("modality", ["text", "image"])
def test_scores_of_an_adapter_are_its_gate_without_further_arguments(
    site: str, modality: Any, tmp_path: Path
) -> None:
    folder = save(tmp_path / "adapter", vectors(site))
    config = GateConfig.parse(str(folder), modality=modality)
    assert (config.lam, config.norm, config.site) == (1.0, "none", site)
    assert config.scores is not None and config.scores.metadata["kind"] == "gate"
    assert config.scores.model == "some/model"
    gate = make_gate(config.scores, lam=config.lam, norm=config.norm, site=config.site)
    np.testing.assert_array_equal(gate.values, VALUES)


def test_layers_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float32).reshape(12, 2) / 8
    tensors = {
        f"base_model.model.h.{n}.o.ia3_l": torch.from_numpy(row.repeat(2))[:, None]
        for n, row in enumerate(values)
    }
    scores = TruthScores.load(save(tmp_path, tensors, metadata={"layers": 12, "heads": 2}))
    np.testing.assert_array_equal(scores.scores, values - 1)


def test_an_adapter_of_others_needs_the_number_of_heads(tmp_path: Path) -> None:
    folder = save(tmp_path, vectors(), metadata={})
    with pytest.raises(ScoresError, match="--shape LAYERSxHEADS"):
        TruthScores.load(folder)
    np.testing.assert_array_equal(TruthScores.load(folder, shape=(3, 2)).scores, VALUES - 1)


def test_an_adapter_without_the_mark_of_an_export_is_taken_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    TruthScores.load(save(tmp_path / "ours", vectors()))
    assert not caplog.records
    values = vectors(pattern="base_model.model.model.layers.{}.self_attn.v_proj.ia3_l")
    TruthScores.load(save(tmp_path / "foreign", values, metadata={}), shape=(3, 2))
    [record] = caplog.records
    message = record.getMessage()
    assert record.levelname == "WARNING" and "\n" not in message and str(tmp_path / "foreign") in message
    assert "bears no mark of `truthgate export`" in message and "what scales its v_proj" in message


def _uneven() -> dict[str, Any]:
    tensors = vectors()
    next(iter(tensors.values()))[1] = 0.75
    return tensors


@pytest.mark.parametrize(
    ("tensors", "config", "metadata", "message"),
    [
        (vectors(), {"peft_type": "LORA"}, None, "of type 'LORA', and a gate is one of type IA3"),
        (vectors(), [], None, "of type None"),
        (vectors(), None, {"layers": 4, "heads": 2}, "scales 3 modules, expected one in each of 4 layers"),
        (vectors(), None, {"layers": 3, "heads": 3}, "8 features, which do not divide into 3 heads"),
        (vectors(), None, {"layers": 3, "heads": 4}, ""),
        (vectors(), None, {"layers": True, "heads": 2}, "does not say how many heads"),
        (vectors(), None, "{", "cut off or not JSON"),
        (vectors(), None, "[]", "its metadata is"),
        (_uneven(), None, None, "scales features of one head differently"),
        ({**vectors(), "base_model.model.a.b.ia3_l": torch.ones(8, 1)}, None, None, "modules of several kinds"),
        ({**vectors(), "lora_A.weight": torch.ones(8, 1)}, None, None, "is no vector of an IA3 adapter"),
        ({"m.0.o.ia3_l": torch.ones(8)}, None, None, "is no vector of an IA3 adapter"),
        ({"m.0.o.ia3_l": torch.ones(8, 1, dtype=torch.int8)}, None, None, "is no vector of an IA3 adapter"),
        ({"m.0.o.ia3_l": torch.ones(8, 2)}, None, None, "expected all"),
        ({"m.0.o.ia3_l": torch.full((8, 1), float("nan"))}, None, {"layers": 1, "heads": 2}, "NaN or infinite"),
        ({f"m.{n}.o.ia3_l": torch.ones(2, 1) for n in range(1100)}, None, None, "no gate has that many layers"),
        ({}, None, None, "holds no tensors"),
    ],
)  # fmt: skip
def test_what_is_no_gate_is_refused_in_one_line(
    tensors: Any, config: Any, metadata: Any, message: str, tmp_path: Path
) -> None:
    folder = save(tmp_path / "adapter", tensors, config, metadata)
    if not message:  # four heads of two features each: also a gate of the same values
        assert TruthScores.load(folder).shape == (3, 4)
        return
    with pytest.raises(ScoresError) as error:
        TruthScores.resolve(str(folder))
    assert message in str(error.value) and str(folder) in str(error.value) and "\n" not in str(error.value)


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "adapter", vectors())
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ScoresError, match="cannot be read"):
        TruthScores.load(folder)
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(ScoresError, match=r"holds no adapter_model\.safetensors"):
        TruthScores.load(folder)
    (folder / "adapter_config.json").write_text("{" + " " * (1 << 20))
    with pytest.raises(ScoresError, match="no adapter's config is that long"):
        TruthScores.load(folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ScoresError, match="no score file at"):
        TruthScores.load(folder)
