from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import tiny_models as factories

from truthgate_eval.attribution.direct_effect import direct_effects, find_final_norm
from truthgate_eval.attribution.log_odds import AnswerDocument
from truthgate_eval.gating.attention_layout import Site, find_attention_layout
from truthgate_eval.inference import self_check

DOCUMENTS = [
    AnswerDocument(((1, 5, 6, 7, 8), (1, 5, 6, 9)), (True, False), 0),
    AnswerDocument(((1, 40, 41), (1, 40, 42)), (False, True), 1),
]


def from_scratch(model: torch.nn.Module, document: AnswerDocument) -> np.ndarray:
    """Llama's direct effects by its own weights: RMSNorm's weight over its fixed root mean square."""
    kept: list[torch.Tensor] = []
    hooks = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _m, args: kept.append(args[0][0, -1]))
        for layer in model.model.layers
    ]
    residual: list[torch.Tensor] = []
    hooks.append(model.model.norm.register_forward_pre_hook(lambda _m, args: residual.append(args[0][0, -1])))
    context = document.sequences[0][: document.context_length]
    with torch.no_grad():
        model(input_ids=torch.tensor([context]))
    for hook in hooks:
        hook.remove()
    right, wrong = (
        document.sequences[document.truthful.index(own)][document.context_length] for own in (True, False)
    )
    rms = (residual[0].pow(2).mean() + model.model.norm.variance_epsilon).sqrt()
    direction = (model.lm_head.weight[right] - model.lm_head.weight[wrong]) * model.model.norm.weight / rms
    effects = np.zeros((3, 4))
    for layer, inputs in enumerate(kept):
        weight = model.model.layers[layer].self_attn.o_proj.weight
        for head in range(4):
            own = slice(head * 8, (head + 1) * 8)
            effects[layer, head] = float(weight[:, own] @ inputs[own] @ direction)
    return effects


def test_direct_effects_of_a_llama_equal_those_from_its_weights() -> None:
    model = factories.tiny_model("llama")
    layout = find_attention_layout(model)
    shared = self_check.load(model, layout.decoder)
    found = direct_effects(shared, layout, DOCUMENTS, site="pre")
    for i, document in enumerate(DOCUMENTS):
        np.testing.assert_allclose(found[i], from_scratch(model, document), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma"])
@pytest.mark.parametrize("site", ["pre", "post"])
def test_effects_of_all_heads_are_the_effect_of_the_whole_projection(name: str, site: Site) -> None:
    """What all heads of a layer add is what W_o's output adds, apart from its bias."""
    model = factories.tiny_model(name)
    layout = find_attention_layout(model)
    for projection in layout.projections:
        if getattr(projection.module, "bias", None) is not None:
            torch.nn.init.zeros_(projection.module.bias)
    shared = self_check.load(model, layout.decoder)
    whole = direct_effects(shared, layout, DOCUMENTS, site="post").sum(axis=2)
    by_head = direct_effects(shared, layout, DOCUMENTS, site=site).sum(axis=2)
    np.testing.assert_allclose(by_head, whole, rtol=1e-3, atol=1e-4)


def test_removing_the_last_layers_write_changes_the_logits_by_its_effect() -> None:
    """In the last layer, without an MLP after it, the direct effect is the whole effect but for the norm's scale."""
    model = factories.tiny_model("llama")
    with torch.no_grad():
        model.model.layers[-1].mlp.down_proj.weight.zero_()
    layout = find_attention_layout(model)
    shared = self_check.load(model, layout.decoder)
    effects = direct_effects(shared, layout, DOCUMENTS[1:], site="pre")[0]
    step = 1e-3
    weight = model.model.layers[-1].self_attn.o_proj.weight
    context = torch.tensor([DOCUMENTS[1].sequences[0][:2]])

    def final_residual_and_odds() -> tuple[float, float]:
        kept: list[torch.Tensor] = []
        hook = model.model.norm.register_forward_pre_hook(lambda _m, args: kept.append(args[0][0, -1]))
        with torch.no_grad():
            logits = model(input_ids=context).logits[0, -1]
        hook.remove()
        rms = float((kept[0].pow(2).mean() + model.model.norm.variance_epsilon).sqrt())
        return rms, float(logits[42] - logits[41])

    rms, odds = final_residual_and_odds()
    with torch.no_grad():
        weight[:, :8] *= 1 + step
    changed_rms, changed = final_residual_and_odds()
    assert (changed * changed_rms - odds * rms) / rms / step == pytest.approx(
        effects[-1, 0], rel=2e-2, abs=1e-3
    )


def test_the_final_norm_is_the_one_after_the_layers() -> None:
    model = factories.tiny_model("gpt_neox")
    layout = find_attention_layout(model)
    assert find_final_norm(self_check.load(model), layout) is model.gpt_neox.final_layer_norm
