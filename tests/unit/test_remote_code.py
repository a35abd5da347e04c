"""The code that comes with a model is never run, and no question is asked, unless trust_remote_code says so."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from truthgate_eval.data.rewriters import local_rewriter
from truthgate_eval.errors import ModelError
from truthgate_eval.export.source import find_source
from truthgate_eval.harness.lm_eval.probing import load_lm
from truthgate_eval.vision.loading import LoadOptions, load_vlm

LOADERS: dict[str, Callable[[str], Any]] = {
    "gated_vlm and vlm": lambda path: load_vlm(LoadOptions(path)),
    "export of text": lambda path: find_source(path, "text"),
    "export of images": lambda path: find_source(path, "image"),
    "hf": lambda path: load_lm("hf", {"pretrained": path}, batch_size=1, device="cpu"),
    "gated_hf": lambda path: load_lm(
        "gated_hf", {"pretrained": path, "scores": "none"}, batch_size=1, device="cpu"
    ),
    "rewriter": lambda path: local_rewriter(path, device="cpu"),
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model whose classes are in a file beside it, which leaves a mark when it runs."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "from transformers import PretrainedConfig, PreTrainedModel\n"
        "class Config(PretrainedConfig):\n    model_type = 'own'\n"
        "class Model(PreTrainedModel):\n    config_class = Config\n"
    )
    names = ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoProcessor")
    auto_map = {"AutoConfig": "own.Config", **dict.fromkeys(names, "own.Model")}
    config = {"model_type": "own", "architectures": ["Model"], "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", LOADERS)
def test_a_models_own_code_is_not_run(name: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(builtins, "input", lambda question="": asked.append(question) or "y")
    with pytest.raises(ModelError, match="custom code"):
        LOADERS[name](str(model))
    assert asked == [] and not (model.parent / "ran").exists()


def test_it_runs_where_it_is_asked_for(model: Path) -> None:
    source = find_source(str(model), "text", trust_remote_code=True)
    assert source.config.model_type == "own" and (model.parent / "ran").exists()
