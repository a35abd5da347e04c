"""The model that a gate is exported for: its config, and the folder of its checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from truthgate_eval.errors import ModelError, first_line, shorten
from truthgate_eval.export.skeleton import build_skeleton
from truthgate_eval.files import read_json
from truthgate_eval.gating.gate_arguments import Modality
from truthgate_eval.gating.ia3_adapter import ADAPTER_CONFIG
from truthgate_eval.packaged.models import resolve_packaged
from truthgate_eval.packaged.smollm2 import SMOLLM2, SMOLLM2_HUB
from truthgate_eval.vision.loading import LoadOptions, load_config

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
# Everything beside the weights that transformers, tokenizers and processors read.
_SMALL = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py", "LICENSE*", "NOTICE*", "spk_dict.pt")
_WEIGHT_SUFFIXES = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
    ".npz",
)
_OTHER_FORMATS = ("pytorch_model", "tf_model", "flax_model")
# Qwen2.5-Omni's voices, without which the whole model does not load.
_NO_WEIGHTS = ("spk_dict.pt",)
_TEMPLATES = "additional_chat_templates"
QUANTIZED = (
    "a gate cannot be multiplied into quantized weights; use --format peft, or export the checkpoint that it "
    "was quantized from"
)
_NO_SAFETENSORS = (
    f"has no {_WEIGHTS} and no {_INDEX}: load it with transformers and save it with save_pretrained, which "
    "writes safetensors, or use --format peft"
)


@dataclass(frozen=True)
class ModelSource:
    """A model by its name.

    Attributes:
        name: As the user gave it.
        location: Its hub id or folder, as transformers takes it.
        modality: `text` for a causal language model, `image` for one that takes images and text.
        config: Its config; of an Omni checkpoint, its thinker's.
        revision: Git branch, tag or commit on the hub.
        trust_remote_code: Run code that comes with the model.
        gguf_file: The file with config and weights, of a model in llama.cpp's format; or None.
    """

    name: str
    location: str
    modality: Modality
    config: Any
    revision: str | None = None
    trust_remote_code: bool = False
    gguf_file: str | None = None

    @property
    def base_model(self) -> str | None:
        """The hub id by which others load it; None for a folder, a GGUF file, a packaged child."""
        if self.name == SMOLLM2:
            return SMOLLM2_HUB
        return None if self.gguf_file is not None or Path(self.location).is_dir() else self.name

    @property
    def commit(self) -> str | None:
        """The commit of the hub that the config is from; None for a folder."""
        if Path(self.location).is_dir():
            return None
        from huggingface_hub import try_to_load_from_cache

        # transformers has just put it there, or found it there; its folder is named after the commit.
        file = self.gguf_file or "config.json"
        path = try_to_load_from_cache(self.location, file, revision=self.revision or "main")
        return Path(path).parent.name if isinstance(path, str) else None

    def skeleton(self) -> Any:
        """The model without its weights; see `build_skeleton`."""
        return build_skeleton(self.config, self.modality, trust_remote_code=self.trust_remote_code)

    def checkpoint(self) -> Path:
        """The folder of the checkpoint; of a model on the hub, what is needed of it is fetched.

        Raises:
            ModelError: It cannot be fetched, or has no safetensors.
        """
        if self.gguf_file is not None:
            raise ModelError(f"{self.gguf_file} is quantized: {QUANTIZED}")
        if Path(self.location).is_dir():
            return Path(self.location)
        from huggingface_hub import snapshot_download

        # The config's commit, so that a push in between changes nothing.
        revision = self.commit or self.revision
        try:
            folder = Path(snapshot_download(self.location, revision=revision, allow_patterns=list(_SMALL)))
            shards = _shard_names(folder) if (folder / _INDEX).is_file() else [_WEIGHTS]
            snapshot_download(self.location, revision=revision, allow_patterns=shards)
        except ModelError:
            raise
        except Exception as error:  # no network, no access, no such revision: all of different classes
            raise ModelError(f"model {self.name!r} cannot be fetched: {first_line(error)}") from error
        if not any((folder / name).is_file() for name in (_WEIGHTS, _INDEX)):
            raise ModelError(f"model {self.name!r} on the hub {_NO_SAFETENSORS}")
        return folder


def find_source(
    name: str,
    modality: Modality,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
) -> ModelSource:
    """A model by its hub id, its folder or its packaged name; only its config is read.

    Args:
        name: Hub id, folder or packaged name.
        modality: `text` or `image`.
        revision: Git branch, tag or commit on the hub.
        trust_remote_code: Run code that comes with the model.
        gguf_file: The file of a text model in llama.cpp's format.

    Raises:
        ModelError: There is no such model, or it is of another kind.
    """
    location = resolve_packaged(name, modality)
    if modality == "image":
        config = load_config(LoadOptions(pretrained=location, revision=revision))
    else:
        more: dict[str, Any] = {} if gguf_file is None else {"gguf_file": gguf_file}
        more["trust_remote_code"] = trust_remote_code  # left out, transformers would ask in a terminal
        try:
            config = transformers.AutoConfig.from_pretrained(location, revision=revision or "main", **more)
        except Exception as error:
            raise ModelError(f"model {name!r} cannot be loaded: {first_line(error)}") from error
    return ModelSource(name, location, modality, config, revision, trust_remote_code, gguf_file)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, in the order of their names.

    Raises:
        ModelError: It has none, or one is missing.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        raise ModelError(f"{folder} holds an adapter beside the model: merge it first (merge_and_unload)")
    if (folder / _WEIGHTS).is_file():  # transformers prefers it to an index
        return [folder / _WEIGHTS]
    if not (folder / _INDEX).is_file():
        others = sorted(path.name for path in folder.iterdir() if path.suffix in _WEIGHT_SUFFIXES)
        if not others:
            raise ModelError(f"{folder} has a config and no weights: is it the model's folder?")
        raise ModelError(f"{folder} holds {shorten(others)}, but {_NO_SAFETENSORS}")
    paths = [folder / name for name in _shard_names(folder)]
    missing = next((path for path in paths if not os.path.isfile(path)), None)
    if missing is not None:
        raise ModelError(f"{missing} is missing, and {_INDEX} names it: fetch the model again")
    return paths


def _shard_names(folder: Path) -> list[str]:
    """The files that an index names.

    Raises:
        ModelError: It names something else than files beside it.
    """
    content = read_json(folder / _INDEX)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    plain = all(isinstance(name, str) and Path(name).name == name for name in names)
    if not names or not plain or any(not name.endswith(".safetensors") for name in names):
        raise ModelError(f"{folder / _INDEX} is no index of safetensors files")
    return sorted(set(names))


def other_files(folder: Path) -> Iterator[Path]:
    """What belongs to a checkpoint beside its weights and its card: config, tokenizer, processor."""
    # The index of files that are not copied would send an engine to look for them.
    index = None if (folder / _WEIGHTS).is_file() else _INDEX
    for path in [*sorted(folder.iterdir()), *sorted((folder / _TEMPLATES).glob("*.jinja"))]:
        is_weights = path.suffix in _WEIGHT_SUFFIXES or path.name.startswith(_OTHER_FORMATS)
        is_weights = (is_weights and path.name not in _NO_WEIGHTS) or (
            path.name.endswith(".index.json") and path.name != index
        )
        if path.is_file() and not is_weights and path.name != "README.md" and not path.name.startswith("."):
            yield path
