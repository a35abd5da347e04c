"""What processors of vision-language models add to a text, and the settings that some of them lack."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from PIL import Image

from truthgate_eval.errors import ModelError, reason_of

log = logging.getLogger(__name__)

_TEST_SIZE = 56


def image_token(processor: Any) -> str:
    """An image's placeholder in a text; some processors (BLIP-2's) keep it as a tokenizers object."""
    token = processor.image_token
    return str(getattr(token, "content", token))


def supports_suffix(processor: Any) -> bool:
    """Whether an answer is an argument of its own, `suffix`, as for PaliGemma.

    Its processor appends a line break to the prompt, which therefore stands before the answer. The prompt's
    tokens attend to each other in both directions: an answer within it would be seen by its own first token.
    """
    return "suffix" in inspect.signature(type(processor).__call__).parameters


def puts_image_tokens_itself(processor: Any, prompt: str, name: str) -> bool:
    """Run a processor on an image: whether it puts the image's tokens before the text, as BLIP-2's does.

    It then leaves a placeholder in the text as one more image token, which the model would refuse.

    Args:
        processor: The processor.
        prompt: A question about one image.
        name: The model's name in messages.

    Raises:
        ModelError: The processor fails on an image; the message says why.
    """
    try:
        marked = _count_image_tokens(processor, prompt)
    except Exception as error:  # processors fail in many ways where a setting is missing or wrong
        raise ModelError(f"the processor of model {name!r} fails on a picture: {reason_of(error)}") from error
    if supports_suffix(
        processor
    ):  # PaliGemma's reads both forms alike, and warns of one without placeholders
        return False
    try:
        unmarked = _count_image_tokens(processor, prompt.replace(image_token(processor), ""))
    except Exception:  # it needs the placeholder, as most do
        return False
    return 0 < unmarked == marked - 1


def _count_image_tokens(processor: Any, text: str) -> int:
    image = Image.new("RGB", (_TEST_SIZE, _TEST_SIZE))
    ids = processor(text=[text], images=[[image]], return_tensors="pt")["input_ids"]
    return int((ids == processor.tokenizer.convert_tokens_to_ids(image_token(processor))).sum())


def complete_from_config(processor: Any, config: Any, saved: Mapping[str, Any], name: str) -> None:
    """Give a processor the settings that its file lacks and the model's config decides.

    Checkpoints saved before transformers 4.47 lack some. The processor then computes a wrong number of image
    tokens, or none.

    Args:
        processor: The processor; it is changed.
        config: The model's config.
        saved: What the checkpoint's `processor_config.json` holds.
        name: The model's name in messages.
    """
    filled = {}
    for setting, read in _SETTINGS.items():
        if not hasattr(processor, setting) or saved.get(setting) is not None:
            continue
        own = getattr(processor, setting)
        # Where a class has another default than None, its setting may be a product with other settings.
        value = read(config) if own is None or setting in _DEFAULTED else None
        if value is not None and value != own:
            setattr(processor, setting, value)
            filled[setting] = value
    if filled:
        log.info(
            "the processor of %s lacks settings that its model's config has: %s",
            name,
            ", ".join(f"{setting}={value}" for setting, value in filled.items()),
        )


def _vision(config: Any, setting: str) -> Any:
    return getattr(getattr(config, "vision_config", None), setting, None)


def _select_strategy(config: Any) -> str | None:
    if config.model_type == "vipllava":  # its forward leaves the first token out, and no setting says so
        return "default"
    return getattr(config, "vision_feature_select_strategy", None)


def _num_patches(config: Any) -> int | None:
    size, patch = _vision(config, "image_size"), _vision(config, "patch_size")
    return (size // patch) ** 2 if isinstance(size, int) and isinstance(patch, int) else None


def _num_additional_image_tokens(config: Any) -> int | None:
    """How many tokens the vision tower makes beside those of the patches (CLIP's class token)."""
    patches, size = _num_patches(config), _vision(config, "image_size")
    if patches is None:
        return None
    try:
        with torch.device("meta"):  # shapes only: no weights, no computation
            tower = transformers.AutoModel.from_config(config.vision_config)
            hidden = tower(pixel_values=torch.empty(1, 3, size, size)).last_hidden_state
    except Exception as error:  # a tower may need more than an image
        log.info("the number of tokens of %s is not known: %s", type(config).__name__, reason_of(error))
        return None
    return int(hidden.shape[1]) - patches


# Settings of processors that must agree with the model's config, as transformers documents them.
_SETTINGS: dict[str, Callable[[Any], Any]] = {
    "patch_size": lambda config: _vision(config, "patch_size"),
    "vision_feature_select_strategy": _select_strategy,
    "num_additional_image_tokens": _num_additional_image_tokens,
    "num_image_tokens": _num_patches,  # LLaVA-OneVision
    "vision_aspect_ratio": lambda config: getattr(config, "vision_aspect_ratio", None),
    "spatial_merge_size": lambda config: getattr(config, "spatial_merge_size", None),
    "num_query_tokens": lambda config: getattr(config, "num_query_tokens", None),
    "pooling_ratio": lambda config: getattr(config, "projector_pooling_ratio", None),
}
# Those of them that mean the same in every class, whatever its default.
_DEFAULTED = (
    "vision_feature_select_strategy",
    "num_additional_image_tokens",
    "vision_aspect_ratio",
    "spatial_merge_size",
    "pooling_ratio",
)
