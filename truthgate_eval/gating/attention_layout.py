"""The attention heads of a Hugging Face model: the text decoder's layers and output projections.

The output projection's name differs between model classes, so it is not looked up: `dry_pass` runs the
decoder on two tokens of text and takes the last linear map of each attention block, if that map's output is
what the block returns. A vision or audio tower does not run on text, so it is never found. What each class
of transformers gives is in `docs/models.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from truthgate_eval.decoder import find_decoder
from truthgate_eval.errors import AttentionLayoutError, GateError, check_choice, first_line
from truthgate_eval.gating.dry_pass import LinearCall, find_output_projections
from truthgate_eval.gating.tensor_parallel import split_of_heads

Site = Literal["post", "pre"]
SITES: tuple[Site, ...] = get_args(Site)

# Layers that have heads in the paper's sense, in the words of transformers' configs: their blocks mix tokens
# by softmax attention. Any other word means a recurrence, a convolution, or a layer without attention.
_ATTENTION_TYPES = frozenset(
    {
        "attention", "full_attention", "sliding_attention", "window_attention", "chunked_attention",
        "indexed_attention", "compressed_sparse_attention", "heavily_compressed_attention",
        "minimax_m3_sparse", "hybrid", "hybrid_sliding", "reference_sliding_attention",
    }
)  # fmt: skip
# What transformers' attention blocks call the width of a head at the output projection, and their number.
_HEAD_DIMS = ("v_head_dim", "head_dim", "head_size", "dim_head")
_HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head")


@dataclass(frozen=True)
class Projection:
    """One layer's attention output projection `W_o`.

    Attributes:
        name: Dotted path below the decoder, such as `layers.3.self_attn.o_proj`.
        module: The outermost module that computes the projection: a LoRA wrapper, if there is one.
        in_features: Input width, query heads x head_dim.
        out_features: Output width, the hidden size of the residual stream.
        head_dim: Width of a head as the attention block states it, or None. Where heads of that width do not
            make up the input, the input is not the heads side by side.
    """

    name: str
    module: nn.Module
    in_features: int
    out_features: int
    head_dim: int | None = None


@dataclass(frozen=True)
class AttentionLayout:
    """The attention heads of a model's text decoder, and the modules that compute them.

    In a hybrid model only some layers are attention: they alone have projections, and row i of a score array
    is the i-th of them.

    Attributes:
        decoder: The text decoder, without the language-model head.
        projections: The output projection of every attention layer, in layer order.
        num_heads: Query heads per layer.
        layers: The modules of all layers of the decoder, in layer order.
        layer_numbers: For each projection, the index of its layer in `layers`.
    """

    decoder: nn.Module
    projections: tuple[Projection, ...]
    num_heads: int
    layers: tuple[nn.Module, ...]
    layer_numbers: tuple[int, ...]

    @property
    def num_layers(self) -> int:
        """Number of attention layers; all decoder layers, except in a hybrid model."""
        return len(self.projections)

    @property
    def shape(self) -> tuple[int, int]:
        """(attention layers, heads), the shape of this model's score arrays."""
        return self.num_layers, self.num_heads

    def head_widths(self, site: str) -> tuple[int, ...]:
        """Features per head at a site, for each layer: head_dim for `pre`, hidden size / heads for `post`.

        Raises:
            GateError: The site is unknown, the number of heads does not divide its features, or they are not
                the heads side by side.
        """
        at_input = check_site(site) == "pre"
        widths = []
        for projection in self.projections:
            head_dim = projection.head_dim
            if at_input and head_dim is not None and self.num_heads * head_dim != projection.in_features:
                raise GateError(
                    f"site=pre needs the heads side by side: {projection.name} has {projection.in_features} "
                    f"input features and not {self.num_heads} heads of {head_dim}; use site=post"
                )
            features = projection.in_features if at_input else projection.out_features
            if features % self.num_heads:
                raise GateError(
                    f"site={site} needs features that divide into heads: {projection.name} has {features} "
                    f"features and this model {self.num_heads} heads; use the other site"
                )
            widths.append(features // self.num_heads)
        return tuple(widths)

    def head_width(self, site: str) -> int:
        """Features per head at a site; of the widest layer, where layers differ.

        Raises:
            GateError: As `head_widths`.
        """
        return max(self.head_widths(site))


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
        AttentionLayoutError: The model is not decoder-only, or some layer that should be attention does not
            run exactly one attention block that ends in an output projection; the message says what was
            found.
    """
    config = _text_config(model)
    if getattr(model.config, "is_encoder_decoder", False):
        raise AttentionLayoutError(
            f"{type(model).__name__} is an encoder-decoder; gates are defined for decoder-only models"
        )
    # `num_attention_heads` of a config that describes an encoder, too, is the encoder's.
    count = _whole_number(config, "decoder_layers", "num_decoder_layers", "num_hidden_layers")
    attention_layers = _attention_layers(config, count)
    heads = _whole_number(
        config, "decoder_attention_heads", "num_decoder_attention_heads", "num_attention_heads"
    )
    decoder = find_decoder(model)
    layers, calls = find_output_projections(decoder, count, attention_layers)
    projections = tuple(
        # In a projection that is split over processes, this one's part of the heads has run.
        Projection(
            c.name, c.module, c.in_features * split_of_heads(c.module), c.out_features,
            _head_dim(decoder, c, heads),
        )
        for c in calls
    )  # fmt: skip
    widths = {p.out_features for p in projections}
    if len(widths) != 1:
        raise AttentionLayoutError(f"the layers' output projections differ in output width: {sorted(widths)}")
    return AttentionLayout(decoder, projections, heads, layers, attention_layers)


def _text_config(model: Any) -> Any:
    """The config of a model's text decoder.

    Raises:
        AttentionLayoutError: The model has several decoders.
    """
    try:
        return model.config.get_text_config(decoder=True)
    except ValueError as error:
        raise AttentionLayoutError(f"{type(model).__name__}: {first_line(error)}") from error


def _whole_number(config: Any, *names: str) -> int:
    """The first of these numbers that a config has.

    Raises:
        AttentionLayoutError: The config has no such number, or one for each layer.
    """
    try:
        values = [getattr(config, name, None) for name in names]
    except RuntimeError as error:  # transformers: an attribute that each layer has for itself
        raise AttentionLayoutError(f"{type(config).__name__}: {first_line(error)}") from error
    value = next((value for value in values if value is not None), None)
    if not isinstance(value, int):
        raise AttentionLayoutError(
            f"{type(config).__name__} does not say one {names[-1]} for all layers (found {value!r})"
        )
    return value


def _head_dim(decoder: nn.Module, call: LinearCall, heads: int) -> int | None:
    """The width of a head that the modules around an output projection state, or None if they state none.

    Raises:
        AttentionLayoutError: They state another number of heads than the config.
    """
    numbers: dict[str, int] = {}
    parts = call.name.split(".")[:-1]
    for end in range(1, len(parts) + 1):
        for name, value in vars(decoder.get_submodule(".".join(parts[:end]))).items():
            if isinstance(value, int) and not isinstance(value, bool):
                numbers[name] = value
    head_dim = next((numbers[name] for name in _HEAD_DIMS if numbers.get(name)), None)
    found = next((numbers[name] for name in _HEAD_COUNTS if name in numbers), None)
    if found is None and head_dim and call.in_features % head_dim == 0:
        found = call.in_features // head_dim
    # Under tensor parallelism a block states its own heads.
    if found is not None and found not in (heads, heads // split_of_heads(call.module)):
        raise AttentionLayoutError(
            f"{call.name} is the output projection of {found} heads, and the config says {heads}: gates need "
            "the same number of heads in all layers"
        )
    return head_dim


def _attention_layers(config: Any, count: int) -> tuple[int, ...]:
    """The layers whose blocks are attention; all of them where the config does not tell layers apart.

    Raises:
        AttentionLayoutError: None is.
    """
    kinds = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if not kinds:
        return tuple(range(count))
    found = tuple(i for i, kind in enumerate(kinds[:count]) if kind in _ATTENTION_TYPES)
    if not found:
        raise AttentionLayoutError(
            f"no layer of {type(config).__name__} is attention: they are {', '.join(sorted(set(kinds)))}"
        )
    return found
