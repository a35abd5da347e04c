"""A text child of the packaged SmolLM2: a LoRA adapter in PEFT's format, merged into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from truthgate_eval.errors import ModelError, first_line
from truthgate_eval.packaged.smollm2 import SMOLLM2, resolve_smollm2

WEIGHT_FILES = ("adapter_config.json", "adapter_model.safetensors")


def assemble(weights: Path, folder: Path) -> None:
    """Write an ordinary float32 checkpoint with the adapter merged into the base model.

    Args:
        weights: Folder with the files of `WEIGHT_FILES`.
        folder: For the checkpoint.

    Raises:
        ModelError: The weights do not fit.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = resolve_smollm2(SMOLLM2)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    try:
        names = load_file(weights / WEIGHT_FILES[1]).keys()
        model = PeftModel.from_pretrained(model, str(weights))
    except (RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise ModelError(f"the weights in {weights} do not fit: {first_line(error)}") from error
    # PEFT leaves names out that the model does not have. Without embeddings, since it would ask the hub
    # whether the base's vocabulary has another size.
    loaded = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    if names != loaded:
        raise ModelError(f"the weights in {weights} do not fit: {sorted(names ^ loaded)[0]}")
    model.merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
