"""`gated_hf` on a model that gives NaN: no answers on either path, and a name for where it begins."""

from __future__ import annotations

import pytest
import torch
from lm_eval.api.instance import Instance

from truthgate_eval.errors import ModelError
from truthgate_eval.harness.lm_eval.model import GatedHF


@pytest.mark.parametrize("engine", ["auto", "off"])
def test_the_module_is_named(engine: str, checkpoint: str) -> None:
    lm = GatedHF(pretrained=checkpoint, scores="none", engine=engine, device="cpu", batch_size=2)
    request = Instance("loglikelihood", {}, ("Is it so?", " Yes"), 0)
    assert lm.loglikelihood([request])[0][0] < 0
    with torch.no_grad():
        lm.model.model.layers[1].self_attn.o_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"^model\.layers\.1\.self_attn\.o_proj \(Linear\) gives NaN"):
        lm.loglikelihood([request])
