"""Gates on models that transformers' tensor parallelism has split over two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from helpers import tiny_models as factories
from helpers.launch import torchrun

from truthgate_eval.errors import AttentionLayoutError
from truthgate_eval.gating import tensor_parallel
from truthgate_eval.gating.tensor_parallel import split_of_heads

SCRIPT = """
import os, sys
from pathlib import Path
import numpy as np
import torch
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM
from truthgate_eval.errors import GateError
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate import Gate, attach, fold
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.lm_eval.model import GatedHF

values = np.random.default_rng(0).uniform(0, 2, (3, 4))
shift = np.random.default_rng(1).normal(size=(3, 4, 8)).astype(np.float32)
tokens = torch.tensor([[5, 6, 7, 8, 9]])
for gate in (Gate(values, "post"), Gate(values, "pre"), Gate(values, "pre", shift)):
    one = AutoModelForCausalLM.from_pretrained("model").eval()
    split = AutoModelForCausalLM.from_pretrained("model", tp_plan="auto").eval()
    layout, of_split = find_attention_layout(one), find_attention_layout(split)
    assert of_split.shape == layout.shape
    assert [p.in_features for p in of_split.projections] == [p.in_features for p in layout.projections]
    try:
        fold(split, gate)
    except GateError as error:
        assert "is split over processes, so a gate cannot be folded into it; use mode=live" in str(error)
    else:
        raise AssertionError("a split weight was folded into")
    attach(one, gate), attach(split, gate)
    with torch.no_grad():
        torch.testing.assert_close(split(tokens).logits, one(tokens).logits, atol=1e-5, rtol=1e-5)
scores = TruthScores(values / 2, metadata={"model": "tiny", "site": "pre"})
requests = [
    Instance("loglikelihood", {}, (f"How much is {n}?", answer), n) for n in range(4) for answer in (" yes", " no")
]
for engine in ("auto", "off"):
    common = dict(device="cpu", scores=scores, lam=1.0, norm="centered", site="pre", batch_size=2, engine=engine)
    one, split = GatedHF("model", **common), GatedHF("model", tp_plan="auto", **common)
    pairs = zip(one.loglikelihood(requests, True), split.loglikelihood(requests, True), strict=True)
    assert max(abs(a[0] - b[0]) for a, b in pairs) < 1e-4
sys.stdout.write("done\\n")
"""


@pytest.mark.slow
def test_split_projections_are_gated_live_at_both_sites(tmp_path: Path) -> None:
    # transformers 5.20 splits only a vocabulary that the processes divide.
    factories.save_tiny_checkpoint(tmp_path / "model", vocab_size=260)
    (tmp_path / "script.py").write_text(SCRIPT)
    done = torchrun("script.py", cwd=tmp_path)
    if "use a newer transformers" in done.stderr:
        pytest.skip(f"not in transformers {transformers.__version__}: tensor_parallelism")
    if "unexpected keyword argument 'src_data_rank'" in done.stderr:  # transformers 5.20 in torch 2.6
        pytest.skip(f"transformers {transformers.__version__} splits no model in torch {torch.__version__}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["done", "done"]


@pytest.mark.parametrize("distributed", [False, True])
def test_a_split_that_transformers_marks_on_the_module_is_refused(
    distributed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers 5.0 leaves a module that it has split: with plain weights, or with torch 2.6 as a `DTensor`."""
    module = torch.nn.Linear(4, 4)
    assert split_of_heads(module) == 1
    module._hf_tp_plan = "rowwise"
    monkeypatch.setattr(tensor_parallel, "is_distributed", lambda _weight: distributed)
    with pytest.raises(AttentionLayoutError, match="over processes without saying which part each has"):
        split_of_heads(module)
