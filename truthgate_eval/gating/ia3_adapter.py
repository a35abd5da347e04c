"""Gates in the form of PEFT's IA3 adapters (Liu et al. 2022, arXiv 2205.05638).

IA3 multiplies the output features of a linear map, or the input features of one that it calls feedforward,
by a vector. A gate is such a vector for each output projection W_o, with every head's factor repeated over
the head's features. `truthgate_eval.export.adapter` writes these folders. Here they are read, without PEFT
and without trusting them: only safetensors, and every shape is checked.
"""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.errors import DataError, ScoresError, one_line, shorten
from truthgate_eval.files import parse_json, read_bounded, read_json
from truthgate_eval.files.safetensors_header import FLOAT_BYTES, TensorEntry, read_safetensors_header

if TYPE_CHECKING:
    from truthgate_eval.gating.attention_layout import Site

log = logging.getLogger(__name__)

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Under this name the weights' header has the export's own metadata, as JSON.
METADATA_KEY = "truthgate_eval"
IA3_SUFFIX = ".ia3_l"
# No gate's adapter is larger: a vector for each layer, of the width of the residual stream or of the heads.
_MAX_BYTES, _MAX_CONFIG_BYTES, _MAX_LAYERS = 32 << 20, 1 << 20, 1024
_MAX_METADATA = 1 << 20  # characters


def is_adapter(path: Path) -> bool:
    """Whether a path is a folder with a PEFT adapter."""
    return os.path.isfile(path / ADAPTER_CONFIG)  # Path.is_file raises on a long name


def read_adapter(folder: Path, shape: tuple[int, int] | None = None) -> dict[str, Any]:
    """Scores and metadata out of an IA3 adapter on output projections.

    Args:
        folder: The adapter's folder.
        shape: (layers, heads) of the model. An adapter that `truthgate export` wrote says it itself.

    Returns:
        Keyword arguments of `TruthScores`: the scores are g - 1, so that `lam=1,norm=none` is the gate again.

    Raises:
        ScoresError: The folder holds no such adapter, or its vectors are no factors of whole heads.
        DataError: Its config is not JSON.
    """
    _check_config(folder)
    vectors, exported = _read_vectors(folder / ADAPTER_WEIGHTS)
    site, by_layer = _site(vectors), _in_layer_order(vectors)
    if shape is None:
        shape = _recorded_shape(exported)
    if len(by_layer) != shape[0]:
        raise ScoresError(f"scales {len(by_layer)} modules, expected one in each of {shape[0]} layers")
    values = np.stack([_head_factors(name, vector, shape[1]) for name, vector in by_layer])
    if not exported:  # an adapter that PEFT has loaded and saved again has lost its mark, too
        log.warning(
            "%s bears no mark of `truthgate export`: what scales its %s is taken for a gate of the heads' "
            "output projections",
            folder, by_layer[0][0].rpartition(".")[2],
        )  # fmt: skip
    metadata = {
        "imported_from": folder.name,
        "kind": "gate",
        "score": "g - 1",
        "model": exported.get("model"),
        "task": exported.get("task"),
        "site": site,
        "layers": shape[0],
        "heads": shape[1],
        "gate": exported.get("gate"),
        # Not chosen on data, so it holds for every modality.
        "recommended": {"lam": 1.0, "norm": "none", "site": site, "modality": "any"},
    }
    return {
        "scores": values - np.float32(1),
        "metadata": {k: v for k, v in metadata.items() if v is not None},
    }


def _check_config(folder: Path) -> None:
    path = folder / ADAPTER_CONFIG
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise ScoresError(
            f"{ADAPTER_CONFIG} has {path.stat().st_size} bytes: no adapter's config is that long"
        )
    config = read_json(path, most=_MAX_CONFIG_BYTES)
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "IA3":
        raise ScoresError(
            f"is an adapter of type {shorten(kind)}, and a gate is one of type IA3; evaluate another adapter "
            "with peft=FOLDER beside scores="
        )


def _read_vectors(path: Path) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """The adapter's tensors by their modules' names, and the metadata of the export."""
    if not path.exists():
        raise ScoresError(f"holds no {path.name}; adapters in other formats are not read")
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise ScoresError(f"{path.name} has {size} bytes: no gate is that large")
        entries, metadata = read_safetensors_header(path)
        if len(entries) > _MAX_LAYERS:
            raise ScoresError(f"{path.name} holds {len(entries)} tensors: no gate has that many layers")
        content = read_bounded(path, _MAX_BYTES)
    except (DataError, OSError) as error:
        reason = one_line(error).removeprefix(f"{path} ")
        raise ScoresError(f"{path.name} cannot be read ({reason}); export it again") from error
    vectors: dict[str, NDArray[np.float32]] = {}
    for name, entry in entries.items():
        is_vector = entry.dtype in FLOAT_BYTES and len(entry.shape) == 2 and 0 not in entry.shape
        if not name.endswith(IA3_SUFFIX) or not is_vector:
            raise ScoresError(f"tensor {shorten(name)} is no vector of an IA3 adapter")
        vectors[name.removesuffix(IA3_SUFFIX)] = _as_float32(content[entry.begin : entry.end], entry)
    if not vectors:
        raise ScoresError(f"{path.name} holds no tensors")
    return vectors, _parse_metadata(metadata.get(METADATA_KEY))


def _as_float32(content: bytes, entry: TensorEntry) -> NDArray[np.float32]:
    """A tensor's bytes as an array; bfloat16 has the upper half of float32's bits."""
    if entry.dtype == "BF16":
        bits = np.frombuffer(content, "<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(entry.shape)
    with np.errstate(over="ignore"):  # infinite values are refused later
        numbers = np.frombuffer(content, f"<f{FLOAT_BYTES[entry.dtype]}").astype(np.float32)
    return numbers.reshape(entry.shape)


def _parse_metadata(text: Any) -> dict[str, Any]:
    if text is None:
        return {}
    if not isinstance(text, str):
        raise ScoresError(f"its metadata is {shorten(text)}, expected a text")
    if len(text) > _MAX_METADATA:
        raise ScoresError(f"its metadata has {len(text)} characters, more than any export writes")
    content = text.encode("utf-8", "surrogatepass")
    found = parse_json(content, "the adapter's metadata", unique_names=True)
    if not isinstance(found, dict):
        raise ScoresError(f"its metadata is {shorten(found)}, expected an object")
    return found


def _recorded_shape(exported: dict[str, Any]) -> tuple[int, int]:
    layers, heads = exported.get("layers"), exported.get("heads")
    if type(layers) is not int or type(heads) is not int or layers < 1 or heads < 1:
        raise ScoresError(
            "was not made by `truthgate export` and does not say how many heads the model has: make an "
            "artifact of it with `truthgate import FOLDER --shape LAYERSxHEADS ...`"
        )
    return layers, heads


def _site(vectors: dict[str, NDArray[np.float32]]) -> Site:
    """`post` where all vectors are columns [features, 1], `pre` where all are rows [1, features]."""
    shapes = [vector.shape for vector in vectors.values()]
    if all(shape[1] == 1 for shape in shapes):
        return "post"
    if all(shape[0] == 1 for shape in shapes):
        return "pre"
    raise ScoresError(
        f"its vectors have shapes {shorten(sorted(set(shapes)))}, expected all [n, 1] or all [1, n]"
    )


def _in_layer_order(vectors: dict[str, NDArray[np.float32]]) -> list[tuple[str, NDArray[np.float32]]]:
    """The vectors by the number in their modules' names; no other part of the names may differ."""
    numbers: dict[str, tuple[int, ...]] = {}
    patterns = set()
    for name in vectors:
        numbers[name] = tuple(int(number[:9]) for number in re.findall(r"\d+", name))
        patterns.add(re.sub(r"\d+", "N", name))
    if len(patterns) != 1:
        raise ScoresError(
            f"scales modules of several kinds, {shorten(sorted(patterns))}: a gate is on output projections"
        )
    return sorted(vectors.items(), key=lambda item: numbers[item[0]])


def _head_factors(name: str, vector: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """[heads] factors of a vector that repeats each over the head's features."""
    name = shorten(name)
    if vector.size % heads:
        raise ScoresError(f"{name} has {vector.size} features, which do not divide into {heads} heads")
    by_head = vector.reshape(heads, -1)
    if not np.isfinite(by_head).all():
        raise ScoresError(f"{name} holds NaN or infinite values")
    if not (by_head == by_head[:, :1]).all():
        raise ScoresError(f"{name} scales features of one head differently: it is no gate of {heads} heads")
    return by_head[:, 0]


def metadata_text(metadata: dict[str, Any]) -> str:
    """The text of an export's metadata, for the header of its weights."""
    return json.dumps(metadata, sort_keys=True)
