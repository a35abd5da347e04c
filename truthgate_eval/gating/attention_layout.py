"""Where a Hugging Face model keeps its attention heads.

Nothing is guessed from a module's name: one dry pass over two tokens of text shows which
blocks run and which linear map each attention block applies last. That map is the
output projection `W_o`, and a vision or audio tower, which text never reaches, cannot
be taken for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from truthgate_eval.errors import AnatomyError, GateError

Site = Literal["post", "pre"]
SITES: tuple[str, ...] = get_args(Site)


@dataclass(frozen=True)
class Projection:
    """One layer's attention output projection `W_o`.

    Attributes:
        name: Its dotted path below the decoder, such as `layers.3.self_attn.o_proj`.
        module: The outermost module that computes it (a LoRA wrapper, if there is one).
        in_features: Width of its input, query heads x head_dim.
        out_features: Width of its output, the residual stream's hidden size.
    """

    name: str
    module: nn.Module
    in_features: int
    out_features: int


@dataclass(frozen=True)
class AttentionLayout:
    """A model's text decoder and its heads.

    Attributes:
        decoder: The text decoder, without the language-model head.
        projections: The output projection of every layer, in layer order.
        num_heads: Query heads per layer.
        layers: The layers themselves.
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
        """(layers, heads): the shape of every score array of this model."""
        return self.num_layers, self.num_heads

    def head_width(self, site: str) -> int:
        """Features per head at `site`: head_dim for `pre`, hidden / heads for `post`.

        Raises:
            GateError: The site is unknown, or its features do not divide into heads.
        """
        check_site(site)
        first = self.projections[0]
        features = first.in_features if site == "pre" else first.out_features
        if features % self.num_heads:
            raise GateError(
                f"site={site} needs features that divide into heads: this model has {features} features "
                f"and {self.num_heads} heads; use the other site"
            )
        return features // self.num_heads


def check_site(site: str) -> None:
    """Raise `GateError` unless `site` is one of `SITES`."""
    if site not in SITES:
        raise GateError(f"unknown site {site!r}: expected one of {', '.join(SITES)}")


def find_attention_layout(model: Any) -> AttentionLayout:
    """Find the text decoder of a causal language model or a vision-language model.

    Args:
        model: A transformers model, also one wrapped by PEFT or dispatched over devices.

    Raises:
        AnatomyError: No decoder-only attention was found; the message says what was.
    """
    config = model.config.get_text_config(decoder=True)
    if getattr(model.config, "is_encoder_decoder", False):
        raise AnatomyError(
            f"{type(model).__name__} is an encoder-decoder; gates are defined for decoder-only models"
        )
    heads = getattr(config, "num_attention_heads", None)
    count = getattr(config, "num_hidden_layers", None)
    if not isinstance(heads, int) or not isinstance(count, int):
        raise AnatomyError(
            f"{type(config).__name__} does not say one number of layers and attention heads "
            f"(found num_hidden_layers={count!r}, num_attention_heads={heads!r})"
        )
    decoder = model.get_decoder()
    calls = _dry_pass(decoder)
    layers, projections = _output_projections(decoder, calls, count)
    widths = {(p.in_features, p.out_features) for p in projections}
    if len(widths) != 1:
        raise AnatomyError(f"the layers' output projections differ in shape: {sorted(widths)}")
    return AttentionLayout(decoder, projections, heads, layers)


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) features of a linear map of any make, or None for another module."""
    features = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(features[0], int) and isinstance(features[1], int):
        return features[0], features[1]
    if type(module).__name__ == "Conv1D":  # transformers' GPT-2 layer: weight is (in, out)
        rows, columns = module.get_parameter("weight").shape
        return rows, columns
    return None


def _linears(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The outermost linear maps below `module`: a LoRA layer, not the layer inside it."""
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if linear_shape(child) is not None:
            yield path, child
        else:
            yield from _linears(child, path)


def _dry_pass(decoder: nn.Module) -> dict[nn.Module, tuple[int, int, int]]:
    """Run two tokens; return for each linear map (call order, input width, output width)."""
    calls: dict[nn.Module, tuple[int, int, int]] = {}

    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls[module] = (len(calls), args[0].shape[-1], output.shape[-1])

    hooks = [module.register_forward_hook(record) for _, module in _linears(decoder)]
    device = next(decoder.parameters()).device
    tokens = torch.tensor([[0, 1]], device="cpu" if device.type == "meta" else device)
    try:
        with torch.no_grad():
            decoder(input_ids=tokens, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _output_projections(
    decoder: nn.Module, calls: dict[nn.Module, tuple[int, int, int]], count: int
) -> tuple[tuple[nn.Module, ...], tuple[Projection, ...]]:
    """All `count` layers, and the last linear map that each one's attention applied."""
    found: dict[str, tuple[Projection, ...]] = {}
    for path, blocks in decoder.named_modules():
        if not isinstance(blocks, nn.ModuleList) or len(blocks) != count:
            continue
        outputs = [_attention_output(f"{path}.{i}", block, calls) for i, block in enumerate(blocks)]
        complete = tuple(output for output in outputs if output is not None)
        if len(complete) == count:
            return tuple(blocks), complete
        found[path] = complete
    tried = ", ".join(f"{path}: {len(layers)} of {count}" for path, layers in found.items())
    raise AnatomyError(
        f"{type(decoder).__name__}: expected {count} layers that each run one attention block; "
        f"found {tried or 'no list of that many layers'}"
    )


def _attention_output(
    path: str, block: nn.Module, calls: dict[nn.Module, tuple[int, int, int]]
) -> Projection | None:
    """The output projection of one layer, or None where no attention block ran."""
    ran: list[Projection] = []
    for name, child in block.named_children():
        if not any(word in f"{name} {type(child).__name__}".lower() for word in ("attn", "attention")):
            continue
        used = [(calls[module][0], sub, module) for sub, module in _linears(child) if module in calls]
        if not used:  # a norm named after the attention, or a cross-attention that text does not use
            continue
        _, sub, module = max(used, key=lambda item: item[0])
        ran.append(Projection(f"{path}.{name}.{sub}", module, *calls[module][1:]))
    if len(ran) > 1:
        raise AnatomyError(f"{path} runs more than one attention block: {', '.join(p.name for p in ran)}")
    return ran[0] if ran else None
