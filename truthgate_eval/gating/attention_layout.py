"""The attention heads of a Hugging Face model: the text decoder's layers and output projections.

The output projection's name differs between model classes, so it is not looked up. A dry pass over two tokens
of text records which linear maps run and in which order; the last one of an attention block is its output
projection `W_o`. A vision or audio tower does not run on text, so it is never found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from truthgate_eval.devices import weights_device
from truthgate_eval.errors import AttentionLayoutError, GateError, check_choice

Site = Literal["post", "pre"]
SITES: tuple[Site, ...] = get_args(Site)

# One call of a linear map: its rank among all calls, input width, output width.
_Call = tuple[int, int, int]


@dataclass(frozen=True)
class Projection:
    """One layer's attention output projection `W_o`.

    Attributes:
        name: Dotted path below the decoder, such as `layers.3.self_attn.o_proj`.
        module: The outermost module that computes the projection: a LoRA wrapper, if there is one.
        in_features: Input width, query heads x head_dim.
        out_features: Output width, the hidden size of the residual stream.
    """

    name: str
    module: nn.Module
    in_features: int
    out_features: int


@dataclass(frozen=True)
class AttentionLayout:
    """The attention heads of a model's text decoder, and the modules that compute them.

    Attributes:
        decoder: The text decoder, without the language-model head.
        projections: The output projection of every layer, in layer order.
        num_heads: Query heads per layer.
        layers: The layers' modules, in layer order.
    """

    decoder: nn.Module
    projections: tuple[Projection, ...]
    num_heads: int
    layers: tuple[nn.Module, ...]

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.projections)

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, heads), the shape of this model's score arrays."""
        return self.num_layers, self.num_heads

    def head_width(self, site: str) -> int:
        """Features per head at a site: head_dim for `pre`, hidden size / heads for `post`.

        Raises:
            GateError: The site is unknown, or the number of heads does not divide its features.
        """
        projection = self.projections[0]
        features = projection.in_features if check_site(site) == "pre" else projection.out_features
        if features % self.num_heads:
            raise GateError(
                f"site={site} needs features that divide into heads: this model has {features} features "
                f"and {self.num_heads} heads; use the other site"
            )
        return features // self.num_heads


def check_site(site: str) -> Site:
    """The site of that name.

    Raises:
        GateError: There is none.
    """
    return check_choice("site", site, SITES, GateError)


def find_attention_layout(model: Any) -> AttentionLayout:
    """Find the attention heads of a causal language model or of a vision-language model's decoder.

    Args:
        model: A transformers model; it may be wrapped by PEFT or dispatched over devices.

    Raises:
        AttentionLayoutError: The model is not decoder-only, or some layer does not run exactly one attention
            block; the message lists what was found.
    """
    config = model.config.get_text_config(decoder=True)
    if getattr(model.config, "is_encoder_decoder", False):
        raise AttentionLayoutError(
            f"{type(model).__name__} is an encoder-decoder; gates are defined for decoder-only models"
        )
    heads = getattr(config, "num_attention_heads", None)
    count = getattr(config, "num_hidden_layers", None)
    if not isinstance(heads, int) or not isinstance(count, int):
        raise AttentionLayoutError(
            f"{type(config).__name__} does not say one number of layers and attention heads "
            f"(found num_hidden_layers={count!r}, num_attention_heads={heads!r})"
        )
    decoder = model.get_decoder()
    calls = _record_linear_calls(decoder)
    layers, projections = _find_output_projections(decoder, calls, count)
    widths = {(p.in_features, p.out_features) for p in projections}
    if len(widths) != 1:
        raise AttentionLayoutError(f"the layers' output projections differ in shape: {sorted(widths)}")
    return AttentionLayout(decoder, projections, heads, layers)


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) features of a linear map of any class, or None for another module."""
    features = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(features[0], int) and isinstance(features[1], int):
        return features[0], features[1]
    if type(module).__name__ == "Conv1D":  # transformers' GPT-2 layer: weight is (in, out)
        rows, columns = module.get_parameter("weight").shape
        return rows, columns
    return None


def _linears(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Paths and modules of the outermost linear maps: a LoRA layer, not the layer inside it."""
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if linear_shape(child) is not None:
            yield path, child
        else:
            yield from _linears(child, path)


def _record_linear_calls(decoder: nn.Module) -> dict[nn.Module, _Call]:
    """Run the decoder on two tokens and record the last call of each linear map."""
    calls: dict[nn.Module, _Call] = {}

    def record(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        calls[module] = (len(calls), args[0].shape[-1], output.shape[-1])

    hooks = [module.register_forward_hook(record) for _, module in _linears(decoder)]
    tokens = torch.tensor([[0, 1]], device=weights_device(decoder))
    try:
        with torch.no_grad():
            decoder(input_ids=tokens, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _find_output_projections(
    decoder: nn.Module, calls: Mapping[nn.Module, _Call], count: int
) -> tuple[tuple[nn.Module, ...], tuple[Projection, ...]]:
    """The decoder's `count` layers, and the output projection of each."""
    found: dict[str, tuple[Projection, ...]] = {}
    for path, blocks in decoder.named_modules():
        if not isinstance(blocks, nn.ModuleList) or len(blocks) != count:
            continue
        outputs = [_find_output_projection(f"{path}.{i}", block, calls) for i, block in enumerate(blocks)]
        projections = tuple(output for output in outputs if output is not None)
        if len(projections) == count:
            return tuple(blocks), projections
        found[path] = projections
    tried = ", ".join(f"{path}: {len(projections)} of {count}" for path, projections in found.items())
    raise AttentionLayoutError(
        f"{type(decoder).__name__}: expected {count} layers that each run one attention block; "
        f"found {tried or 'no list of that many layers'}"
    )


def _find_output_projection(
    path: str, block: nn.Module, calls: Mapping[nn.Module, _Call]
) -> Projection | None:
    """The output projection of one layer, or None if no attention block ran in it."""
    ran: list[Projection] = []
    for name, child in block.named_children():
        if not any(word in f"{name} {type(child).__name__}".lower() for word in ("attn", "attention")):
            continue
        used = [(calls[module][0], sub, module) for sub, module in _linears(child) if module in calls]
        if not used:  # a layer norm named after the attention, or cross-attention, which text does not use
            continue
        _, sub, module = max(used, key=lambda item: item[0])
        ran.append(Projection(f"{path}.{name}.{sub}", module, *calls[module][1:]))
    if len(ran) > 1:
        raise AttentionLayoutError(
            f"{path} runs more than one attention block: {', '.join(p.name for p in ran)}"
        )
    return ran[0] if ran else None
