"""Live gates on models whose layers accelerate has put on the disk, or fetches from the CPU one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from helpers import tiny_models as factories

from truthgate_eval.errors import GateError
from truthgate_eval.gating.gate import Gate, attach, fold
from truthgate_eval.probing.capture import capture

GATE = np.random.default_rng(0).uniform(0, 2, (3, 4))
SHIFT = np.random.default_rng(1).normal(size=(3, 4, 8)).astype(np.float32)
GATES = {"post": Gate(GATE, "post"), "pre": Gate(GATE, "pre"), "shift": Gate(GATE, "pre", SHIFT)}
SEQUENCES = [[5, 6, 7, 8], [5, 6, 9], [4, 3, 8, 9, 7]]


def on_disk(folder: Path) -> Any:
    device_map = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk",
                  "model.layers.2": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu",
                  "lm_head": "cpu"}  # fmt: skip
    return dispatch_model(
        factories.tiny_model("llama"), device_map, main_device="cpu", offload_dir=str(folder)
    )


def from_cpu(folder: Path) -> Any:
    del folder
    return cpu_offload(factories.tiny_model("llama"), execution_device=torch.device("cpu"))


PLACES = {"on the disk": on_disk, "from the CPU": from_cpu}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", GATES)
def test_offloaded_layers_are_gated_live_and_not_folded(kind: str, place: str, tmp_path: Path) -> None:
    expected, model = factories.tiny_model("llama"), PLACES[place](tmp_path)
    attach(expected, GATES[kind])
    with pytest.raises(GateError, match=r"is offloaded, so a gate cannot be folded into it; use mode=live"):
        fold(model, GATES[kind])
    tokens = factories.prompts()
    with torch.no_grad():
        vanilla = model(tokens).logits
        with attach(model, GATES[kind]):
            for _ in range(2):  # weights are fetched, and let go, at each pass
                torch.testing.assert_close(model(tokens).logits, expected(tokens).logits)
        assert torch.equal(model(tokens).logits, vanilla)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("site", ["post", "pre"])
def test_activations_of_offloaded_layers_are_read(site: Any, place: str, tmp_path: Path) -> None:
    expected = capture(factories.tiny_model("llama"), SEQUENCES, site=site)
    found = capture(PLACES[place](tmp_path), SEQUENCES, site=site)
    np.testing.assert_allclose(found, expected, atol=1e-6)
