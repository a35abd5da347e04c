"""A model through transformers' own calls: texts, activations, and a gate by hand.

The oracle of what the package computes in other ways; nothing here uses the package.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from torch import nn

NO_END = 10**6  # an id that no model gives, so that answers go on to the limit


@dataclass(frozen=True)
class PlainModel:
    """A vision-language model and its processor.

    Attributes:
        model: As transformers' auto class loads it; of an Omni checkpoint, the thinker.
        processor: Its processor.
    """

    model: Any
    processor: Any

    @classmethod
    def load(cls, folder: str) -> PlainModel:
        config = hf.AutoConfig.from_pretrained(folder)
        config = getattr(config, "thinker_config", config)
        model = hf.AutoModelForImageTextToText.from_pretrained(folder, config=config)
        return cls(model.eval(), hf.AutoProcessor.from_pretrained(folder))

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    def prompt(self, text: str, num_images: int) -> str:
        """A question in the chat template; where there is none, the images, a line break, the text."""
        if self.processor.chat_template is None:
            return " ".join([str(self.processor.image_token)] * num_images) + "\n" + text
        content = [{"type": "image"}] * num_images + [{"type": "text", "text": text}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )

    def inputs(self, prompt: str, images: Sequence[Image.Image]) -> Any:
        return self.processor(text=[prompt], images=[list(images)] if images else None, return_tensors="pt")

    def answer(self, prompt: str, answer: str) -> str:
        """An answer as it follows a prompt; PaliGemma's processor puts a line break before it by itself."""
        takes_suffix = "suffix" in inspect.signature(type(self.processor).__call__).parameters
        return answer if takes_suffix or prompt[-1:].isspace() else f" {answer}"

    def text(self, question: str, images: Sequence[Image.Image], max_new_tokens: int = 8) -> str:
        """The greedy answer to one question alone."""
        inputs = self.inputs(self.prompt(question, len(images)), images)
        made = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        return self.tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def logits(self, question: str, images: Sequence[Image.Image]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Logits of the answer's first token, [vocabulary]."""
        with torch.no_grad():
            return self.model(**self.inputs(self.prompt(question, len(images)), images)).logits[0, -1].numpy()

    def activations(
        self, prompt: str, answer: str, images: Sequence[Image.Image], site: str
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """[layers, features] at the answer's last token, where `generate` is made to write that answer."""
        kept: dict[int, torch.Tensor] = {}

        def keep(layer: int) -> Any:
            def hook(_module: Any, args: Any, output: Any) -> None:
                value = args[0] if site == "pre" else output
                kept[layer] = value.reshape(-1, value.shape[-1])[-1]

            return hook

        hooks = [m.register_forward_hook(keep(n)) for n, m in enumerate(self.projections().values())]
        tokens = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        try:
            self.model.generate(
                **self.inputs(prompt, images), max_new_tokens=len(tokens) + 1, do_sample=False,
                eos_token_id=NO_END, logits_processor=hf.LogitsProcessorList([_Written(tokens)]),
            )  # fmt: skip
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack([kept[layer] for layer in range(len(kept))]).detach().numpy()

    def projections(self) -> dict[str, nn.Linear]:
        """The text decoder's output projections by their names in the class."""
        return {
            name: module
            for name, module in self.model.named_modules()
            if name.endswith(".self_attn.o_proj")
            and not any(t in name for t in ("vision", "visual", "audio"))
        }

    def gated(self, gate: np.ndarray[Any, Any], site: str) -> PlainModel:
        """A copy whose output projections multiply every head in a plain loop: no hooks.

        Args:
            gate: g, [layers, heads].
            site: `post` or `pre`.
        """
        model = copy.deepcopy(self.model)
        for name, row in zip(self.projections(), gate, strict=True):
            parent, _, last = name.rpartition(".")
            block = model.get_submodule(parent)
            setattr(block, last, ScaledByHand(getattr(block, last), row, site))
        return type(self)(model, self.processor)


class PlainText(PlainModel):
    """A causal language model and its tokenizer, without a chat template."""

    @classmethod
    def load(cls, folder: str) -> PlainText:
        model = hf.AutoModelForCausalLM.from_pretrained(folder)
        return cls(model.eval(), hf.AutoTokenizer.from_pretrained(folder))

    @property
    def tokenizer(self) -> Any:
        return self.processor

    def prompt(self, text: str, num_images: int) -> str:
        assert num_images == 0
        return text

    def inputs(self, prompt: str, images: Sequence[Image.Image]) -> Any:
        return self.tokenizer(prompt, return_tensors="pt")


class _Written(hf.LogitsProcessor):
    """Makes `generate` write these tokens, and then what it likes."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.remaining = list(tokens)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self.remaining:
            scores = torch.full_like(scores, -torch.inf)
            scores[:, self.remaining.pop(0)] = 0
        return scores


class ScaledByHand(nn.Module):
    """An output projection that multiplies every head: the paper's equations."""

    def __init__(self, projection: nn.Linear, gate: np.ndarray[Any, Any], site: str) -> None:
        super().__init__()
        self.weight, self.bias, self.gate, self.site = projection.weight, projection.bias, gate, site

    def scale(self, x: torch.Tensor) -> torch.Tensor:
        heads = x.chunk(len(self.gate), dim=-1)
        return torch.cat([float(g) * head for g, head in zip(self.gate, heads, strict=True)], dim=-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.scale(x) if self.site == "pre" else x
        x = nn.functional.linear(x, self.weight, self.bias)
        return x if self.site == "pre" else self.scale(x)
