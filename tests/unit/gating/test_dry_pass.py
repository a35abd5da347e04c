from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.small_decoder import HEADS, HIDDEN, LAYERS, Attention, Decoder, Layer, Model
from torch import nn

from truthgate_eval.errors import AttentionLayoutError
from truthgate_eval.gating.dry_pass import LinearCall, find_output_projections

EVERY = tuple(range(LAYERS))


def find(attentions: list[nn.Module]) -> list[LinearCall]:
    decoder = Model(attentions).decoder
    return list(find_output_projections(decoder, len(attentions), tuple(range(len(attentions))))[1])


class Gated(Attention):
    """A gate on the output, computed after it: the gate runs last, and W_o's output is not returned."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: torch.Tensor) -> Any:
        return self.o_proj(self.heads(x)) * self.gate(x).sigmoid()


class GatedInside(Attention):
    """A gate on the heads, as in Qwen3-Next: it runs before W_o."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: torch.Tensor) -> Any:
        return self.o_proj(self.heads(x) * self.gate(x).sigmoid())


class ScaledAfter(Attention):
    def forward(self, x: torch.Tensor) -> Any:
        return self.o_proj(self.heads(x)) * 0.5


class NoProjection(Attention):
    """Experts make the output, and are no linear maps (JetMoE)."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: torch.Tensor) -> Any:
        return self.heads(x * self.router(x)) @ self.o_proj.weight.T


class PostNorm(Attention):
    """BERT: the block adds the residual and normalizes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)

    def forward(self, x: torch.Tensor) -> Any:
        return (self.norm(x + self.o_proj(self.heads(x))), None)


class InPlace(Attention):
    """The output is changed in place and comes back in another shape."""

    def forward(self, x: torch.Tensor) -> Any:
        output = self.o_proj(self.heads(x)).flatten(0, 1)
        output += 1.0
        return output.view(x.shape)


class Router(nn.Linear):
    """A linear map that returns a tuple (Llama 4, Phi-3.5-MoE)."""

    def forward(self, x: torch.Tensor) -> Any:
        logits = super().forward(x)
        return logits, logits.softmax(-1)


class Routed(Attention):
    """A router runs last, and its result is used for nothing that the block returns as hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.router = Router(HIDDEN, 2)

    def forward(self, x: torch.Tensor) -> Any:
        output = self.o_proj(self.heads(x))
        return output, self.router(x)[1]


@pytest.mark.parametrize("attention", [Attention, GatedInside, PostNorm, InPlace, Routed])
def test_the_output_projection_is_found_by_what_the_block_returns(attention: Any) -> None:
    found = find([attention() for _ in EVERY])
    assert [call.name for call in found] == [f"layers.{i}.self_attn.o_proj" for i in EVERY]
    assert all((call.in_features, call.out_features) == (HIDDEN, HIDDEN) for call in found)


@pytest.mark.parametrize(
    ("attention", "last"), [(Gated, "gate"), (ScaledAfter, "o_proj"), (NoProjection, "qkv_proj")]
)
def test_a_linear_map_whose_output_is_not_returned_is_refused_by_name(attention: Any, last: str) -> None:
    with pytest.raises(AttentionLayoutError, match=rf"layers\.0\.self_attn\.{last} is the last linear map"):
        find([attention() for _ in EVERY])


def test_one_wrong_block_among_good_ones_is_named() -> None:
    with pytest.raises(
        AttentionLayoutError, match=r"layers\.1\.self_attn\.gate is the last linear map .* Gated"
    ):
        find([Attention(), Gated(), Attention()])


class AttentionLayer(nn.Module):
    """Called attention, and ends in its MLP without a residual (Zamba's shared layer)."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()
        self.up, self.down = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x + self.self_attn(x)[0]).tanh())


def test_a_layer_that_is_called_attention_is_not_gated_at_its_mlp() -> None:
    names = [call.name for call in find([AttentionLayer() for _ in EVERY])]
    assert names == [f"layers.{i}.self_attn.self_attn.o_proj" for i in EVERY]


class NormWithLinears(nn.Module):
    """A normalization that is named after the attention and contains linear maps (A.X K2)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.two(self.one(x)).sigmoid()


class LayerWithNorm(Layer):
    def __init__(self) -> None:
        super().__init__(Attention())
        self.post_attention_layernorm = NormWithLinears()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.post_attention_layernorm(x))


def test_a_normalization_that_is_named_after_the_attention_is_no_attention_block() -> None:
    torch.manual_seed(0)
    decoder = Decoder([LayerWithNorm() for _ in EVERY])
    calls = find_output_projections(decoder, LAYERS, EVERY)[1]
    assert [call.name for call in calls] == [f"layers.{i}.self_attn.o_proj" for i in EVERY]


class Wrapped(nn.Module):
    """A linear map in a module that is named after the attention."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class WithWrapper(Attention):
    def __init__(self) -> None:
        super().__init__()
        linear = self._modules.pop("qkv_proj")
        assert isinstance(linear, nn.Linear)
        self.attn_qkv = Wrapped(linear)
        object.__setattr__(self, "qkv_proj", self.attn_qkv)  # found under one name only


def test_a_module_around_one_linear_map_is_no_attention_block() -> None:
    names = [call.name for call in find([WithWrapper() for _ in EVERY])]
    assert names == [f"layers.{i}.self_attn.o_proj" for i in EVERY]


class TwoBlocks(Layer):
    def __init__(self) -> None:
        super().__init__(Attention())
        self.second_attn = Attention()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + self.second_attn(x)[0])


def test_two_attention_blocks_in_one_layer_are_refused_by_name() -> None:
    decoder = Decoder([TwoBlocks() for _ in EVERY])
    with pytest.raises(
        AttentionLayoutError, match=r"layers\.0\.self_attn\.o_proj, layers\.0\.second_attn\.o_proj"
    ):
        find_output_projections(decoder, LAYERS, EVERY)


def test_layers_that_share_a_block_are_refused() -> None:
    shared = Attention()
    with pytest.raises(AttentionLayoutError, match=r"layers\.0\.self_attn\.o_proj run 2 times"):
        find([shared, Attention(), shared])


def test_layers_that_share_only_weights_are_refused() -> None:
    attentions = [Attention() for _ in EVERY]
    attentions[2].o_proj.weight = attentions[0].o_proj.weight
    with pytest.raises(AttentionLayoutError, match=r"layers\.0\.self_attn\.o_proj run 2 times"):
        find(list(attentions))


class Twice(Attention):
    """Two streams (ProphetNet)."""

    def forward(self, x: torch.Tensor) -> Any:
        self.o_proj(self.heads(x * 2))
        return super().forward(x)


def test_a_projection_that_runs_twice_in_its_block_is_refused() -> None:
    with pytest.raises(AttentionLayoutError, match=r"layers\.1\.self_attn\.o_proj run 2 times in one pass"):
        find([Attention(), Twice(), Attention()])


class Fails(Attention):
    def forward(self, x: torch.Tensor) -> Any:
        self.o_proj(self.heads(x))
        raise ZeroDivisionError("no image\nsecond line")


@pytest.mark.parametrize("attention", [Attention, Fails])
@pytest.mark.parametrize("grad", [True, False])
def test_the_dry_pass_leaves_everything_as_it_was(attention: Any, grad: bool) -> None:
    model = Model([Attention(), attention(), Attention()])
    model.train()
    model.decoder.layers[0].eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    with torch.set_grad_enabled(grad):
        if attention is Fails:
            with pytest.raises(AttentionLayoutError, match=r"ZeroDivisionError: no image$"):
                find_output_projections(model.decoder, LAYERS, EVERY)
        else:
            find_output_projections(model.decoder, LAYERS, EVERY)
        assert torch.is_grad_enabled() == grad
    assert torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_dry_pass_runs_without_dropout() -> None:
    class WithDropout(Attention):
        def forward(self, x: torch.Tensor) -> Any:
            return nn.functional.dropout(self.o_proj(self.heads(x)), 0.5, self.training)

    model = Model([WithDropout() for _ in EVERY])
    model.train()
    assert len(find_output_projections(model.decoder, LAYERS, EVERY)[1]) == LAYERS


def test_widths_are_those_of_what_ran() -> None:
    found = find([Attention(width) for width in (4, 8, 4)])
    assert [call.in_features for call in found] == [HEADS * 4, HEADS * 8, HEADS * 4]
