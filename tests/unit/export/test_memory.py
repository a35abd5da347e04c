"""A checkpoint in the shape of a 7B model is exported in a few hundred megabytes of memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf

from truthgate_eval.export.safetensors_file import read_header
from truthgate_eval.export.skeleton import build_skeleton
from truthgate_eval.gating.scores import TruthScores

# Prints the peak of this process's resident memory before and after the export, in MiB.
SCRIPT = """
import resource, sys
from truthgate_eval.cli import main
import truthgate_eval.export.adapter, truthgate_eval.export.checkpoint, truthgate_eval.harness.lm_eval.model
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sys.argv = ["truthgate", *sys.argv[1:]]
main.app(standalone_mode=False)
print(before // 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def save_7b(folder: Path, layers: int) -> Path:
    """Llama-7B's shapes in bfloat16, in shards of two layers; all weights are 0 but the output projections."""
    config = hf.LlamaConfig(num_hidden_layers=layers, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    shards: dict[str, dict[str, torch.Size]] = {}
    for name, parameter in build_skeleton(config, "text").state_dict().items():
        number = name.split(".")[2] if ".layers." in name else "0"
        shards.setdefault(f"model-{int(number) // 2:05}.safetensors", {})[name] = parameter.shape
    weight_map = {}
    values = torch.randn(4096, 4096, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    for file, shapes in shards.items():
        header, end = {}, 0
        for name, shape in shapes.items():
            header[name] = {
                "dtype": "BF16",
                "shape": list(shape),
                "data_offsets": [end, end + 2 * shape.numel()],
            }
            end += 2 * shape.numel()
            weight_map[name] = file
        content = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
        with (folder / file).open("wb") as out:
            out.write(len(content).to_bytes(8, "little") + content)
            for name in shapes:
                if "o_proj" in name:
                    out.seek(8 + len(content) + header[name]["data_offsets"][0])
                    out.write(values.view(torch.uint8).numpy().tobytes())
            out.truncate(8 + len(content) + end)  # the zeros take no space on disk
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.slow
def test_a_checkpoint_of_7b_shape_takes_little_memory(tmp_path: Path) -> None:
    layers = int(os.environ.get("TRUTHGATE_TEST_LAYERS", "4"))  # 32 is the whole model, of 13.5 GB
    source = save_7b(tmp_path / "source", layers)
    # Such that g - 1 and 1 + (g - 1) are exact.
    values = np.random.default_rng(0).integers(32, 96, (layers, 32)).astype(np.float32) / 64
    TruthScores(values - 1).save(tmp_path / "a.npz")
    arguments = ["export", "--format", "checkpoint", "--output", str(tmp_path / "out"), "--model_args",
                 f"pretrained={source},scores={tmp_path / 'a.npz'},lam=1,norm=none"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split("\n")[-2].split())
    sys.stdout.write(f"{layers} layers: {before} MiB after the imports, {after} MiB at the peak\n")
    assert after - before < 400
    last = f"model.layers.{layers - 1}.self_attn.o_proj.weight"
    file = json.loads((source / "model.safetensors.index.json").read_text())["weight_map"][last]
    weight = read_header(source / file).read(last)
    factors = torch.from_numpy(values[-1]).repeat_interleave(128)[:, None]
    assert torch.equal(read_header(tmp_path / "out" / file).read(last), (weight * factors).to(torch.bfloat16))
    shutil.rmtree(tmp_path)  # gigabytes, which pytest would keep for three runs
