"""What the harnesses' answer caches must know of a model: a fingerprint of all that decides its answers.

lm-eval's `--use_cache` keys on the request alone, lmms-eval's on the text of `--model_args`. Neither sees
that a file changed under its path. See `docs/harnesses.md#caches`.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import tempfile
import uuid
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truthgate_eval.errors import ModelError, reason_of
from truthgate_eval.files import sha256

if TYPE_CHECKING:
    from truthgate_eval.gating.gate import GateHandle
    from truthgate_eval.gating.gate_config import GateConfig

_PACKAGES = ("transformers", "tokenizers", "torch")


def digest(value: object) -> str:
    """SHA-256 of a value of JSON, in hexadecimal; equal in every process.

    Other objects in it count as they are pickled, functions as their name, sets in sorted order.

    Example:
        >>> digest({"a": 1, "b": {"x"}}) == digest({"b": {"x"}, "a": 1}) != digest({"a": 2})
        True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_as_json).encode()).hexdigest()


def gate_state(
    config: GateConfig, handle: GateHandle | None, contrast: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The gate as its configuration says, and the one that is attached to the model now.

    Args:
        config: The configuration, with the SHA-256 of its scores.
        handle: The live gate; None for a folded gate, which is in the weights, and for none.
        contrast: What an answer depends on by a contrast with the context taken away; None without one.
    """
    is_live = handle is not None and handle.is_attached
    attached = handle.gate.fingerprint if handle is not None and is_live else None
    state = {"config": config.describe(), "attached": attached}
    return {**state, "contrast": contrast} if contrast else state


def model_fingerprint(model: Any, preprocessor: Any, settings: Mapping[str, object]) -> str:
    """SHA-256 of a loaded model: weights, configuration, adapters, tokenizer, settings and versions.

    Content counts and not names, so that it sees a checkpoint or an adapter that was saved anew under its old
    path, and takes any loaded model. It reads all weights once: about a second for each 2 GB.

    Args:
        model: A transformers model, also with an adapter or a folded gate.
        preprocessor: Its tokenizer or processor.
        settings: What else decides an answer.

    Raises:
        ModelError: The weights cannot be read, or the tokenizer cannot be saved.
    """
    adapters = {name: config.to_dict() for name, config in getattr(model, "peft_config", {}).items()}
    configs = [model.config, getattr(model, "generation_config", None)]
    return digest(
        {
            "class": f"{type(model).__module__}.{type(model).__qualname__}",
            "weights": _weights_digest(model),
            "configs": [config and config.to_dict() for config in configs],
            "adapters": adapters,
            "preprocessor": _saved_files(preprocessor),
            "settings": dict(settings),
            "versions": {package: version(package) for package in _PACKAGES},
        }
    )


def _weights_digest(model: Any) -> str:
    import torch  # not above: task files need `digest` alone

    from truthgate_eval.inference.quantization import stored_tensors

    found = hashlib.sha256()
    for name, value in stored_tensors(model):
        found.update(f"\n{name} {getattr(value, 'dtype', '')} {getattr(value, 'shape', '')}\n".encode())
        if not isinstance(value, torch.Tensor):
            found.update(repr(value).encode())
            continue
        try:
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        except (RuntimeError, NotImplementedError) as error:  # offloaded, or of a kind without bytes
            raise ModelError(
                f"--use_cache and `truthgate study` tell models apart by their weights, and {name} cannot be "
                f"read ({reason_of(error)}): leave --use_cache out, or load the model without offloading"
            ) from error
    return found.hexdigest()


def _saved_files(preprocessor: Any) -> dict[str, str]:
    """SHA-256 of every file that a tokenizer or processor saves, by name."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            preprocessor.save_pretrained(folder)
        except Exception as error:  # tokenizers of a checkpoint's own code fail in any way
            raise ModelError(
                f"--use_cache and `truthgate study` tell tokenizers apart by their files, and "
                f"{type(preprocessor).__name__} cannot be saved ({reason_of(error)}): leave --use_cache out, "
                "or give one that can be saved"
            ) from error
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): sha256(path) for path in files}


def _as_json(value: object) -> object:
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if callable(value):
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return f"{getattr(value, '__module__', '')}.{name}"
    try:
        return hashlib.sha256(pickle.dumps(value)).hexdigest()
    except Exception:  # objects refuse in many ways; what has no content to compare is equal to nothing
        return uuid.uuid4().hex
