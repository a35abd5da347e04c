"""Loads a vision-language model by name. Everything small is loaded first, and every mistake is one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from truthgate_eval.devices import find_device
from truthgate_eval.errors import ModelError, first_line, reason_of
from truthgate_eval.inference.quantization import bitsandbytes_config
from truthgate_eval.packaged.models import resolve_packaged
from truthgate_eval.vision.chat_template import find_chat_template
from truthgate_eval.vision.model import VisionLanguageModel
from truthgate_eval.vision.processor import complete_from_config, puts_image_tokens_itself


@dataclass(frozen=True)
class LoadOptions:
    """What to load and how; `parse` makes one from a harness's model arguments.

    Attributes:
        pretrained: Hub id or folder, or a packaged model's name, such as `smollm2-135m-scenes`.
        revision: Git branch, tag or commit on the hub.
        dtype: Such as `bfloat16`; `auto` takes the checkpoint's.
        device: Such as `cuda:0`; None takes CUDA if there is one, else the CPU.
        device_map: Such as `auto`, for a model that is larger than one device.
        attn_implementation: As in transformers' `from_pretrained`.
        peft: An adapter's hub id or folder.
        load_in_4bit: Quantize to 4 bits with bitsandbytes.
        load_in_8bit: Quantize to 8 bits with bitsandbytes.
        max_pixels: The most pixels of an image, for processors that have such a limit (Qwen's).
        min_pixels: The fewest pixels of an image, as well.
        chat_template: File with a Jinja template, or `plain`; None takes the model's own.
        system_instruction: Text of a system message before each question, or None.
    """

    pretrained: str
    revision: str | None = None
    dtype: str = "auto"
    device: str | None = None
    device_map: str | None = None
    attn_implementation: str | None = None
    peft: str | None = None
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    max_pixels: int | None = None
    min_pixels: int | None = None
    chat_template: str | None = None
    system_instruction: str | None = None

    def __post_init__(self) -> None:
        if self.load_in_4bit and self.load_in_8bit:
            raise ModelError("load_in_4bit and load_in_8bit exclude each other")
        if self.device and self.device_map:
            raise ModelError("device and device_map exclude each other: device_map places the whole model")

    @classmethod
    def parse(cls, arguments: Mapping[str, Any]) -> LoadOptions:
        """Options from arguments that may be texts, numbers or "None", as harnesses parse them.

        Raises:
            ModelError: A value is not of its option's type.
        """
        readers = {"str": _text, "str | None": _text, "bool": _flag, "int | None": _number}
        of_field = {field.name: readers[str(field.type)] for field in fields(cls)}
        given = {name: value for name, value in arguments.items() if value not in (None, "None", "")}
        parsed: dict[str, Any] = {name: of_field[name](name, value) for name, value in given.items()}
        return cls(**parsed)


LOAD_ARGUMENTS = tuple(field.name for field in fields(LoadOptions))


def load_vlm(options: LoadOptions) -> VisionLanguageModel:
    """Load a model that takes images and text; of an Omni checkpoint, the thinker alone.

    Raises:
        ModelError: Something is missing, does not fit or cannot be loaded; one line says what.
    """
    # Before the weights: a mistake should not cost the minutes that they take.
    device = find_device(options.device)
    dtype = _dtype(options.dtype)
    name = options.pretrained
    options = replace(options, pretrained=resolve_packaged(name, "image"))
    quantization = bitsandbytes_config(
        {"load_in_4bit": options.load_in_4bit, "load_in_8bit": options.load_in_8bit}, dtype
    )
    config = load_config(options)
    processor = _load_processor(options, config)
    chat = find_chat_template(processor, options.chat_template, options.pretrained)
    if puts_image_tokens_itself(processor, chat.prompt("a text", 1), options.pretrained):
        chat = replace(chat, has_placeholders=False)
    if options.system_instruction:
        chat = chat.with_system(options.system_instruction, name)
    if options.peft:
        _check_adapter(options)
    device_map = options.device_map or ({"": device} if quantization else None)
    model = _load_weights(
        options, config, dtype=dtype, device_map=device_map, quantization_config=quantization
    )
    try:
        model = model if device_map else model.to(device)
    except RuntimeError as error:  # too little memory
        raise ModelError(f"model {name!r} does not go to {device}: {reason_of(error)}") from error
    if options.peft:
        model = _load_adapter(model, options)
    _complete_generation_config(model, processor.tokenizer)
    return VisionLanguageModel(model.eval(), processor, chat, name)


def load_config(options: LoadOptions) -> Any:
    """The config of a model that takes images and text; of an Omni checkpoint, the thinker's.

    Raises:
        ModelError: There is no such model, or it takes no images.
    """
    name = options.pretrained
    if name.startswith(("/", "./", "../", "~")) and not Path(name).expanduser().is_dir():
        raise ModelError(f"there is no model folder {name}")
    try:
        config = transformers.AutoConfig.from_pretrained(
            name, revision=options.revision or "main", trust_remote_code=False
        )
    except Exception as error:
        raise _cannot_load(f"model {name!r}", error) from error
    config = getattr(config, "thinker_config", config)  # the language half of an Omni checkpoint
    if type(config) not in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ModelError(
            f"model {name!r} is a {config.model_type}, which takes no pictures; "
            "lm_eval --model gated_hf runs text models"
        )
    return config


def _load_processor(options: LoadOptions, config: Any) -> Any:
    name, revision = options.pretrained, options.revision or "main"
    try:
        processor = transformers.AutoProcessor.from_pretrained(
            name, revision=revision, trust_remote_code=False
        )
        saved, _ = transformers.ProcessorMixin.get_processor_dict(name, revision=revision)
    except Exception as error:
        raise _cannot_load(f"the processor of model {name!r}", error) from error
    images = getattr(processor, "image_processor", None)
    tokenizer = getattr(processor, "tokenizer", None)
    if images is None or tokenizer is None or getattr(processor, "image_token", None) is None:
        raise ModelError(f"model {name!r} has no processor for pictures, only {type(processor).__name__}")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    complete_from_config(processor, config, saved, name)
    limits = {"shortest_edge": options.min_pixels, "longest_edge": options.max_pixels}
    wanted = {edge: pixels for edge, pixels in limits.items() if pixels is not None}
    if wanted:
        # Only processors that count pixels name these two among their settings.
        if "max_pixels" not in getattr(images.valid_kwargs, "__annotations__", {}):
            raise ModelError(f"{type(images).__name__} of {name!r} has no min_pixels and max_pixels")
        images.size = type(images.size)(**{**dict(images.size), **wanted})
    return processor


def _load_weights(options: LoadOptions, config: Any, **placement: Any) -> Any:
    name = options.pretrained
    auto: Any = transformers.AutoModelForImageTextToText
    try:
        model, report = auto.from_pretrained(
            name,
            config=config,
            revision=options.revision or "main",
            attn_implementation=options.attn_implementation,
            trust_remote_code=False,
            output_loading_info=True,
            **placement,
        )
    except Exception as error:
        raise _cannot_load(f"model {name!r}", error) from error
    missing = sorted(report["missing_keys"])
    if missing:  # transformers only warns, and fills them with random numbers
        raise ModelError(f"the checkpoint of {name!r} lacks {len(missing)} weights, such as {missing[0]}")
    return model


def _check_adapter(options: LoadOptions) -> None:
    from peft import PeftConfig

    try:
        PeftConfig.from_pretrained(str(options.peft))
    except Exception as error:
        raise _cannot_load(f"adapter {options.peft!r} of model {options.pretrained!r}", error) from error


def _load_adapter(model: Any, options: LoadOptions) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(options.peft))
    except Exception as error:
        raise _cannot_load(f"adapter {options.peft!r} of model {options.pretrained!r}", error) from error


def _complete_generation_config(model: Any, tokenizer: Any) -> None:
    """Checkpoints without a generation config get the tokenizer's tokens for end and padding."""
    config = model.generation_config
    if config.eos_token_id is None:
        config.eos_token_id = tokenizer.eos_token_id
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id


def _dtype(name: str) -> torch.dtype | Literal["auto"]:
    if name == "auto":
        return "auto"
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ModelError(f"dtype={name} is no floating-point type of torch; write auto, bfloat16 or float32")
    return dtype


def _cannot_load(what: str, error: Exception) -> ModelError:
    return ModelError(f"{what} cannot be loaded: {first_line(error)}")


def _text(name: str, value: Any) -> str:
    # Harnesses make numbers of what looks like one; an integer is turned back without loss.
    if isinstance(value, bool | float):
        raise ModelError(f"{name}={value} is not a text")
    return str(value)


def _flag(name: str, value: Any) -> bool:
    if str(value).lower() in ("true", "1"):
        return True
    if str(value).lower() in ("false", "0"):
        return False
    raise ModelError(f"{name}={value} is neither True nor False")


def _number(name: str, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = 0
    if number < 1 or isinstance(value, bool) or number != float(value):
        raise ModelError(f"{name}={value} is not a whole number above 0")
    return number
