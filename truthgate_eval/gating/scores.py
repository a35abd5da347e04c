"""The score artifact: the truth scores of one model's attention heads, and how they were measured.

Probing writes `TruthScores` and gating reads them, as one `.npz` file without pickles. The bare arrays that
the method's authors published can be loaded, too.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.errors import ScoresError, first_line, one_line, shorten
from truthgate_eval.files import check_json_depth, write_atomic
from truthgate_eval.gating.head_maps import read_head_map
from truthgate_eval.gating.ia3_adapter import is_adapter, read_adapter
from truthgate_eval.paths import shipped

SCHEMA_VERSION = 1
_PER_HEAD = (
    "scores", "stderr", "auroc", "train_accuracy", "probe_bias", "accuracy", "activation_std",
    "mean_difference_std",
)  # fmt: skip
_OF_WIDTH = ("probe_weight", "mean_difference")
_ARRAYS = (*_PER_HEAD, *_OF_WIDTH, "seed_scores")
# The file has control_NAME and control_NAME_stderr for each control.
_CONTROL, _STDERR = "control_", "_stderr"


@dataclass(frozen=True, eq=False)
class TruthScores:
    """Truth scores of every head of one model, with their uncertainty and provenance.

    Attributes:
        scores: float32 [layers, heads]; validation accuracy of each head's probe
            (`docs/method.md#truth-scores`, step 4), or the quantity that `metadata["score"]` names.
        stderr: Standard error of `scores`, same shape.
        auroc: Area under the ROC curve on the validation data, same shape.
        train_accuracy: The probes' accuracy on their training data, same shape.
        probe_weight: [layers, heads, width] probe directions, fitted on all sequences.
        probe_bias: [layers, heads] probe intercepts.
        activation_std: [layers, heads] standard deviation of the activations along `probe_weight`, that is
            of x . w / |w| over all sequences.
        mean_difference: [layers, heads, width] mean activation of the truthful sequences minus that of the
            hallucinated ones.
        mean_difference_std: [layers, heads] as `activation_std`, along `mean_difference`.
        accuracy: [layers, heads] validation accuracy, if `scores` are another quantity.
        seed_scores: [seeds, layers, heads] scores of each assignment of folds; `scores` are their mean.
        controls: For each control the probes' accuracy under it, [layers, heads], or [1, 1] if it has one
            probe for all heads.
        control_stderr: For each control the standard error of accuracy minus control, of the same shape.
        metadata: Provenance, JSON-serializable. `recommended`, if present, is the gate setting that was
            selected on held-out data.
    """

    scores: NDArray[np.float32]
    stderr: NDArray[np.float32] | None = None
    auroc: NDArray[np.float32] | None = None
    train_accuracy: NDArray[np.float32] | None = None
    probe_weight: NDArray[np.float32] | None = None
    probe_bias: NDArray[np.float32] | None = None
    accuracy: NDArray[np.float32] | None = None
    seed_scores: NDArray[np.float32] | None = None
    activation_std: NDArray[np.float32] | None = None
    mean_difference: NDArray[np.float32] | None = None
    mean_difference_std: NDArray[np.float32] | None = None
    controls: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    control_stderr: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._convert_arrays()
        self._check_controls()
        recommended = self.metadata.get("recommended", {})
        if not isinstance(recommended, dict):
            raise ScoresError(
                f"the metadata's `recommended` is {recommended!r}, expected an object such as "
                '{"lam": 1.0, "norm": "centered", "site": "post"}'
            )

    def _convert_arrays(self) -> None:
        for name in _ARRAYS:
            array = getattr(self, name)
            if array is not None:
                object.__setattr__(self, name, _as_float32(name, array))
        if self.scores.ndim != 2 or self.scores.size == 0:
            raise ScoresError(f"scores have shape {self.scores.shape}, expected [layers, heads]")
        for name in _ARRAYS[1:]:
            array = getattr(self, name)
            if array is not None and not self._has_expected_shape(name, array):
                raise ScoresError(f"{name} has shape {array.shape}, scores have {self.shape}")

    def _check_controls(self) -> None:
        for name in sorted(self.controls.keys() ^ self.control_stderr.keys()):
            missing = f"{_CONTROL}{name}{_STDERR}" if name in self.controls else f"{_CONTROL}{name}"
            raise ScoresError(
                f"control {name!r} has no array {missing}: an accuracy and its standard error are needed"
            )
        for name, array in self._control_arrays().items():
            if array.shape != self.shape and array.shape != (1, 1):
                raise ScoresError(f"{name} has shape {array.shape}, scores have {self.shape}")

    def _has_expected_shape(self, name: str, array: NDArray[np.float32]) -> bool:
        if name == "seed_scores":
            return array.ndim == 3 and array.shape[1:] == self.shape
        return array.shape[:2] == self.shape and array.ndim == (3 if name in _OF_WIDTH else 2)

    def _control_arrays(self) -> dict[str, NDArray[np.float32]]:
        """The controls' arrays by their names in the file."""
        accuracies = {f"{_CONTROL}{name}": array for name, array in self.controls.items()}
        errors = {f"{_CONTROL}{name}{_STDERR}": array for name, array in self.control_stderr.items()}
        return {name: _as_float32(name, array) for name, array in {**accuracies, **errors}.items()}

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, heads)."""
        return self.scores.shape[0], self.scores.shape[1]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the score array; artifacts with equal fingerprints give equal gates."""
        shape = f"{self.shape}".encode()
        return hashlib.sha256(shape + np.ascontiguousarray(self.scores).tobytes()).hexdigest()

    @property
    def model(self) -> str:
        """Name of the probed model, or "unknown model"."""
        return str(self.metadata.get("model") or "unknown model")

    def check_fits(self, shape: tuple[int, int], model: str) -> None:
        """Raise `ScoresError`, naming both shapes, unless the scores fit `model`."""
        if self.shape != shape:
            raise ScoresError(
                f"scores of {self.model} have {_heads(self.shape)}, but {model} has {_heads(shape)}: "
                "they belong to another architecture; use scores of this model's own family"
            )

    def save(self, path: str | Path) -> Path:
        """Write the artifact as `.npz`, atomically.

        Raises:
            ScoresError: The path does not end in `.npz`, or its folder does not exist.
            TruthGateError: The file cannot be written.
        """
        path = Path(path)
        check_output(path)
        arrays = {name: getattr(self, name) for name in _ARRAYS if getattr(self, name) is not None}
        arrays.update(self._control_arrays())
        metadata = {"schema": SCHEMA_VERSION, **self.metadata}
        content = io.BytesIO()
        np.savez(content, metadata=np.array(json.dumps(metadata)), **arrays)
        write_atomic(path, content.getvalue())
        return path

    @classmethod
    def load(cls, path: str | Path, *, shape: tuple[int, int] | None = None) -> TruthScores:
        """Read an artifact, a bare `.npy`, a `cv5_head_metrics.csv`, a head map or an exported adapter.

        Args:
            path: The file, or the folder of an IA3 adapter that `truthgate export` wrote.
            shape: (layers, heads) of the model, which a list of heads and a foreign adapter do not say.

        Raises:
            ScoresError: The file is missing, damaged, pickled, or not [layers, heads].
        """
        path = Path(path)
        if not path.is_file() and not is_adapter(path):
            raise ScoresError(f"no score file at {path}")
        readers: dict[str, Callable[[Path], dict[str, Any]]] = {
            ".npz": _read_npz,
            ".npy": _read_npy,
            ".csv": _read_csv,
            ".json": partial(read_head_map, shape=shape),
            ".jsonl": partial(read_head_map, shape=shape),
        }
        reader = partial(read_adapter, shape=shape) if path.is_dir() else readers.get(path.suffix.lower())
        if reader is None:
            raise ScoresError(f"{path.name} is not a score file: expected {', '.join(readers)}")
        try:
            return cls(**reader(path))
        except ScoresError as error:
            raise ScoresError(f"{path}: {error}") from error
        # numpy, zipfile and their decompressors raise some twenty classes for files that are damaged,
        # pickled, encrypted or larger than the memory.
        except Exception as error:
            reason = one_line(error)
            raise ScoresError(f"{path} cannot be read as a score file ({reason}); make it again") from error

    @classmethod
    def resolve(cls, name: str) -> TruthScores:
        """Load scores by path, by a name in `score_artifacts/`, or from `hf://owner/repo/file`.

        Raises:
            ScoresError: Nothing by that name; the message lists the shipped artifacts.
        """
        if name.startswith("hf://"):
            return cls.load(_from_hub(name))
        if Path(name).is_file() or is_adapter(Path(name)):
            return cls.load(name)
        folder = shipped("score_artifacts")
        for candidate in (folder / name, folder / f"{name}.npz"):
            if candidate.is_file():
                return cls.load(candidate)
        known = ", ".join(sorted(p.stem for p in folder.glob("*.npz"))) or "none"
        raise ScoresError(
            f"no scores {name!r}: expected a file, an exported adapter, hf://owner/repo/file.npz, or a "
            f"shipped artifact ({known})"
        )


def check_output(path: Path) -> None:
    """Raise `ScoresError` unless an artifact could be written at `path`."""
    if path.suffix != ".npz":
        raise ScoresError(f"a score artifact is an .npz file; got {path.name!r}")
    if not path.parent.is_dir():
        raise ScoresError(f"the folder of {path} does not exist; make it first")


def _heads(shape: tuple[int, int]) -> str:
    return f"{shape[0]} layers x {shape[1]} heads"


def _as_float32(name: str, array: Any) -> NDArray[np.float32]:
    array = np.asarray(array)
    if array.dtype.kind not in "fiu":
        raise ScoresError(f"{name} holds {array.dtype}, expected numbers")
    array = array.astype(np.float32)
    # AUROC is undefined where all labels are equal, so only that array may hold NaN.
    if name != "auroc" and not np.isfinite(array).all():
        index = np.argwhere(~np.isfinite(array))[0].tolist()
        raise ScoresError(f"{name} holds NaN or infinite values at [layer, head, ...] = {index}")
    return array


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as archive:
        if "scores" not in archive.files:
            raise ScoresError(f"holds no array 'scores', only {archive.files}")
        fields: dict[str, Any] = {name: archive[name] for name in _ARRAYS if name in archive.files}
        controls = {name: archive[name] for name in archive.files if name.startswith(_CONTROL)}
        metadata = json.loads(str(archive["metadata"])) if "metadata" in archive.files else {}
    if not isinstance(metadata, dict):
        raise ScoresError(f"holds metadata that are no JSON object, but {type(metadata).__name__}")
    check_json_depth(metadata, "the metadata")
    schema = metadata.get("schema", SCHEMA_VERSION)
    if not isinstance(schema, int):
        raise ScoresError(f"the metadata's `schema` is {shorten(schema)}, expected a number")
    if schema > SCHEMA_VERSION:
        raise ScoresError(
            f"written in schema {schema}, this version reads up to {SCHEMA_VERSION}: update truthgate_eval"
        )
    fields["control_stderr"] = {
        name.removeprefix(_CONTROL).removesuffix(_STDERR): array
        for name, array in controls.items()
        if name.endswith(_STDERR)
    }
    fields["controls"] = {
        name.removeprefix(_CONTROL): array for name, array in controls.items() if not name.endswith(_STDERR)
    }
    return {**fields, "metadata": metadata}


def _read_npy(path: Path) -> dict[str, Any]:
    return {"scores": np.load(path, allow_pickle=False), "metadata": {"imported_from": path.name}}


def _read_csv(path: Path) -> dict[str, Any]:
    """The authors' `cv5_head_metrics.csv`: one row per (layer, head), with the head's accuracy."""
    with path.open(newline="", encoding="utf-8-sig") as file:  # Excel writes a byte-order mark
        rows = list(csv.DictReader(file))
    if not rows or not {"layer", "head", "accuracy"} <= rows[0].keys():
        raise ScoresError("expected a table with the columns layer, head and accuracy")
    cells = {(int(row["layer"]), int(row["head"])): float(row["accuracy"]) for row in rows}
    shape = (max(layer for layer, _ in cells) + 1, max(head for _, head in cells) + 1)
    if len(cells) != len(rows) or len(cells) != shape[0] * shape[1]:
        raise ScoresError(f"{len(rows)} rows do not fill {_heads(shape)} once each")
    scores = np.array([[cells[layer, head] for head in range(shape[1])] for layer in range(shape[0])])
    return {"scores": scores, "metadata": {"imported_from": path.name}}


def _from_hub(name: str) -> str:
    from huggingface_hub import hf_hub_download

    parts = name.removeprefix("hf://").split("/", 2)
    if len(parts) != 3:
        raise ScoresError(f"{name!r} does not name a file on the hub: expected hf://owner/repo/file.npz")
    owner, repository, filename = parts
    try:
        return hf_hub_download(f"{owner}/{repository}", filename)
    except Exception as error:  # no network, no repository, no file, no access: all of different classes
        raise ScoresError(f"{name} cannot be fetched from the hub: {first_line(error)}") from error
