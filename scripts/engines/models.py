"""The model classes of the page, as tiny random checkpoints on disk, and what they are asked."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

# The tiny models with tokenizers and processors are those of the tests.
sys.path.append(str(Path(__file__).parents[2] / "tests"))
from helpers import tiny_models, tiny_vision_models

# The names of classes, and of their makers.
TEXT = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "GPT2LMHeadModel": "gpt2",
    "GPTNeoXForCausalLM": "gpt_neox",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
}
VISION = {
    "LlavaForConditionalGeneration": "llava",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl",
}
CLASSES = (*TEXT, *VISION)


@dataclass(frozen=True)
class TinyCheckpoint:
    """One class's checkpoint.

    Attributes:
        name: The class.
        folder: The checkpoint with its tokenizer or processor.
        inputs: What every engine computes the logits of: two texts, or a text and an image.
    """

    name: str
    folder: Path
    inputs: dict[str, torch.Tensor]

    @property
    def is_multimodal(self) -> bool:
        """Whether it is a vision-language model."""
        return self.name in VISION

    def load(self, folder: Path | None = None, dtype: torch.dtype = torch.float32) -> Any:
        """The model in transformers, from its own folder or from another one."""
        auto: Any = (
            transformers.AutoModelForImageTextToText
            if self.is_multimodal
            else transformers.AutoModelForCausalLM
        )
        model = auto.from_pretrained(folder or self.folder, dtype=dtype).eval()
        assert type(model).__name__ == self.name
        return model


def save_checkpoint(name: str, folder: Path) -> TinyCheckpoint:
    """Make a class's checkpoint in a folder."""
    if name in TEXT:
        tiny_models.save_tiny_checkpoint(folder, TEXT[name])
        return TinyCheckpoint(name, folder, {"input_ids": tiny_models.prompts()})
    tiny_vision_models.save(folder, VISION[name])
    processor = transformers.AutoProcessor.from_pretrained(folder)
    image = {"qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>"}.get(VISION[name], "<image>")
    inputs = processor(
        images=tiny_vision_models.random_image(),
        text=f"USER: {image}\nIs it red? ASSISTANT:",
        return_tensors="pt",
    )
    return TinyCheckpoint(name, folder, dict(inputs))
