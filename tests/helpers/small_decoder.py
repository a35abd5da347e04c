"""A decoder of our own that is no class of transformers: tests change one part of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

HIDDEN, HEADS, LAYERS = 16, 4, 3


class Attention(nn.Module):
    """Causal softmax attention that ends in `o_proj`."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.num_heads, self.head_dim = HEADS, width
        self.qkv_proj = nn.Linear(HIDDEN, 3 * HEADS * width)
        self.o_proj = nn.Linear(HEADS * width, HIDDEN)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, heads * width]; the heads side by side."""
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv_proj(x).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return mixed.transpose(1, 2).flatten(2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.o_proj(self.heads(x)), None


class Layer(nn.Module):
    """An attention block and an MLP, each with a residual."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.self_attn = attention
        self.mlp = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.self_attn(x)
        x = x + (output[0] if isinstance(output, tuple) else output)
        return x + self.mlp(x).tanh()


class Decoder(nn.Module):
    """Embeddings and layers."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, HIDDEN)
        self.layers = nn.ModuleList(layers)

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return x


class Model(nn.Module):
    """What `find_attention_layout` asks of a model: a config and a decoder."""

    base_model_prefix = "decoder"

    def __init__(self, attentions: list[nn.Module] | None = None, **config: Any) -> None:
        """A model with these attention blocks, by default of equal widths."""
        super().__init__()
        torch.manual_seed(0)
        attentions = attentions or [Attention() for _ in range(LAYERS)]
        self.decoder = Decoder([Layer(attention) for attention in attentions])
        self.config = SimpleNamespace(
            **{"num_attention_heads": HEADS, "num_hidden_layers": len(attentions)} | config
        )
        self.config.get_text_config = lambda decoder: self.config  # noqa: ARG005

    def get_decoder(self) -> nn.Module:
        return self.decoder

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.decoder(input_ids)
