"""A vision-language model under bitsandbytes: loaded, gated, and with an exported adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import tiny_vision_models
from helpers.command_line import truthgate
from peft import PeftModel

from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate import attach, random_gate
from truthgate_eval.vision.loading import LoadOptions, load_vlm


@pytest.mark.parametrize("site", ["post", "pre"])
def test_an_8_bit_model_is_gated_live_and_by_the_adapter_alike(
    site: str, vlm_checkpoint: Callable[[str], str], tmp_path: Path
) -> None:
    source = vlm_checkpoint("llava")
    done = truthgate(
        "export", "--model", "vlm", "--model_args", f"pretrained={source},scores=random:1,site={site}", "--output",
        str(tmp_path / "adapter"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    vlm = load_vlm(LoadOptions(source, dtype="float32", device="cpu", load_in_8bit=True))
    model = vlm.model
    projections = [
        m for name, m in model.named_modules() if "language_model" in name and name.endswith("o_proj")
    ]
    assert [type(module).__name__ for module in projections] == ["Linear8bitLt"] * 3
    inputs = vlm.encode([vlm.prompt("What is it?", 1)], [[tiny_vision_models.random_image()]])
    with torch.no_grad():
        plain = model(**inputs).logits
        gate = random_gate(find_attention_layout(model).shape, seed=1, site=site)
        with attach(model, gate):
            live = model(**inputs).logits
        assert (live - plain).abs().max() > 0.01
        adapted = PeftModel.from_pretrained(model, str(tmp_path / "adapter")).eval()
        assert torch.equal(adapted(**inputs).logits, live)
