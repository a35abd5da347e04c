"""A model by its hub id: the export reads the hub's cache as transformers does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import tiny_models

from truthgate_eval.errors import ModelError
from truthgate_eval.export.source import find_source

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.slow
def test_a_cached_model_of_the_hub_is_exported_by_its_id(tmp_path: Path) -> None:
    model = tmp_path / "hub" / "models--owner--repo"
    snapshot = model / "snapshots" / COMMIT
    tiny_models.tiny_model("llama").save_pretrained(snapshot, max_shard_size="20KB")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    (snapshot / "consolidated.safetensors").write_bytes(b"not needed")
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "truthgate_eval", "export", "--format", "checkpoint", "--output", "out"]
    command += ["--model_args", "pretrained=owner/repo,scores=random:1"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {
        path.name for path in snapshot.glob("model-*")
    } <= names and "consolidated.safetensors" not in names
    record = json.loads((tmp_path / "out" / "README.md").read_text().split("```json\n")[1].split("```")[0])
    assert (record["model"], record["revision"]) == ("owner/repo", COMMIT)
    shutil.rmtree(snapshot)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "is not empty" in done.stderr


def test_an_unknown_model_is_one_line(tmp_path: Path) -> None:
    for modality in ("text", "image"):
        with pytest.raises(ModelError, match="cannot be loaded") as error:
            find_source("owner/no-such-model", modality)
        assert "\n" not in str(error.value)
