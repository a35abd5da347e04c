"""The classes of the published families, and those of the checkpoints that users run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """A class that is examined from its checkpoint's files to its answers.

    Attributes:
        name: The class, and what sets its processor apart where a class has several.
        maker: Name of its tiny model, in `tests/helpers/tiny_models.py` or `tiny_vision_models.py`.
        checkpoints: Published checkpoints of the class.
        has_images: Whether it takes images.
        why: What in the class makes its self check fail, where it fails.
    """

    name: str
    maker: str
    checkpoints: str
    has_images: bool = True
    why: str = ""


FAMILIES = (
    Family("LlamaForCausalLM", "llama", "Vicuna, Llama-2, SmolLM2", has_images=False),
    Family("MistralForCausalLM", "mistral", "Mistral-7B", has_images=False),
    Family("Qwen2ForCausalLM", "qwen2", "Qwen2.5", has_images=False),
    Family("LlavaForConditionalGeneration", "llava", "LLaVA-1.5"),
    Family("LlavaNextForConditionalGeneration", "llava_next", "LLaVA-NeXT"),
    Family(
        "LlavaOnevisionForConditionalGeneration",
        "llava_onevision",
        "LLaVA-OneVision",
        why="an image alone is cut into tiles, several are not",
    ),
    Family("Qwen2VLForConditionalGeneration", "qwen2_vl", "Qwen2-VL"),
    Family("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", "Qwen2.5-VL"),
    Family("Qwen2_5OmniThinkerForConditionalGeneration", "qwen2_5_omni", "Qwen2.5-Omni"),
    Family("Qwen3VLForConditionalGeneration", "qwen3_vl", "Qwen3-VL"),
    Family("InternVLForConditionalGeneration", "internvl", "InternVL3"),
    Family("Idefics3ForConditionalGeneration", "idefics3", "SmolVLM-256M, SmolVLM-500M, Idefics3"),
    Family("SmolVLMForConditionalGeneration", "smolvlm", "SmolVLM2"),
    Family(
        "Gemma3ForConditionalGeneration",
        "gemma3",
        "Gemma 3",
        why="line breaks around it join the prompt's; its tokens attend to each other in both directions",
    ),
    Family(
        "PaliGemmaForConditionalGeneration",
        "paligemma",
        "PaliGemma",
        why="a line break is put behind the prompt, whose tokens attend to each other in both directions",
    ),
    Family("LlavaForConditionalGeneration (PixtralProcessor)", "pixtral", "Pixtral"),
    Family("Mistral3ForConditionalGeneration", "mistral3", "Mistral Small 3.1"),
)
