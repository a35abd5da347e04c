"""The score artifact: the truth scores of one model's attention heads, and how they were measured.

Probing writes `TruthScores` and gating reads them, as one `.npz` file without pickles. The bare arrays that
the method's authors published can be loaded, too.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.errors import DataError, ScoresError, one_line, shorten
from truthgate_eval.files import check_writable, write_atomic
from truthgate_eval.gating.head_maps import read_head_map
from truthgate_eval.gating.hub_scores import fetch_scores
from truthgate_eval.gating.ia3_adapter import is_adapter, read_adapter
from truthgate_eval.gating.score_files import (
    ARRAYS,
    CONTROL,
    MOST_HEADS,
    OF_WIDTH,
    SCHEMA_VERSION,
    STDERR,
    describe_shape,
    read_csv_scores,
    read_npy_scores,
    read_npz_scores,
)
from truthgate_eval.hub import is_hub_address
from truthgate_eval.paths import shipped


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
                f"the metadata's `recommended` is {shorten(recommended)}, expected an object such as "
                '{"lam": 1.0, "norm": "centered", "site": "post"}'
            )

    def _convert_arrays(self) -> None:
        for name in ARRAYS:
            array = getattr(self, name)
            if array is not None:
                object.__setattr__(self, name, _as_float32(name, array))
        if self.scores.ndim != 2 or self.scores.size == 0:
            raise ScoresError(f"scores have shape {self.scores.shape}, expected [layers, heads]")
        for name in ARRAYS[1:]:
            array = getattr(self, name)
            if array is not None and not self._has_expected_shape(name, array):
                raise ScoresError(f"{name} has shape {array.shape}, scores have {self.shape}")

    def _check_controls(self) -> None:
        for name in sorted(self.controls.keys() ^ self.control_stderr.keys()):
            missing = f"{CONTROL}{name}{STDERR}" if name in self.controls else f"{CONTROL}{name}"
            raise ScoresError(
                f"control {name!r} has no array {missing}: an accuracy and its standard error are needed"
            )
        for name, array in self._control_arrays().items():
            if array.shape != self.shape and array.shape != (1, 1):
                raise ScoresError(f"{name} has shape {array.shape}, scores have {self.shape}")

    def _has_expected_shape(self, name: str, array: NDArray[np.float32]) -> bool:
        if name == "seed_scores":
            return array.ndim == 3 and array.shape[1:] == self.shape
        return array.shape[:2] == self.shape and array.ndim == (3 if name in OF_WIDTH else 2)

    def _control_arrays(self) -> dict[str, NDArray[np.float32]]:
        """The controls' arrays by their names in the file."""
        accuracies = {f"{CONTROL}{name}": array for name, array in self.controls.items()}
        errors = {f"{CONTROL}{name}{STDERR}": array for name, array in self.control_stderr.items()}
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
                f"scores of {self.model} have {describe_shape(self.shape)}, but {model} has "
                f"{describe_shape(shape)}: they belong to another architecture; use scores of this model's "
                "own family"
            )

    def save(self, path: str | Path) -> Path:
        """Write the artifact as `.npz`, atomically.

        Raises:
            ScoresError: The path does not end in `.npz`, or its folder does not exist.
            TruthGateError: The file cannot be written.
        """
        path = Path(path)
        check_output(path)
        arrays = {name: getattr(self, name) for name in ARRAYS if getattr(self, name) is not None}
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
        if not os.path.exists(path) or (path.is_dir() and not is_adapter(path)):
            raise ScoresError(f"no score file at {path}")
        readers: dict[str, Callable[[Path], dict[str, Any]]] = {
            ".npz": read_npz_scores,
            ".npy": read_npy_scores,
            ".csv": read_csv_scores,
            ".json": partial(read_head_map, shape=shape),
            ".jsonl": partial(read_head_map, shape=shape),
        }
        reader = partial(read_adapter, shape=shape) if path.is_dir() else readers.get(path.suffix.lower())
        if reader is None:
            raise ScoresError(f"{path.name} is not a score file: expected {', '.join(readers)}")
        try:
            scores = cls(**reader(path))
            if max(scores.shape) > MOST_HEADS:
                raise ScoresError(
                    f"has {describe_shape(scores.shape)}: no model has more than {MOST_HEADS} of either"
                )
        except ScoresError as error:
            raise ScoresError(f"{path}: {error}") from error
        except DataError as error:
            reason = one_line(error).removeprefix(f"{path} ").removeprefix("is ")
            raise ScoresError(f"{path} cannot be read as a score file ({reason}); make it again") from error
        return scores

    @classmethod
    def resolve(cls, name: str, *, shape: tuple[int, int] | None = None) -> TruthScores:
        """Load scores by path, by a name in `score_artifacts/`, or from the hub.

        Args:
            name: The name; on the hub `hf://OWNER/REPO[@REVISION]/FILE[#sha256=HEX]`, or an exported
                adapter's folder in place of the file. The metadata then say the commit and the file's
                SHA-256, under `hub`.
            shape: As in `load`.

        Raises:
            ScoresError: Nothing by that name, and the message lists the shipped artifacts; or it cannot be
                fetched.
        """
        if is_hub_address(name):
            fetched = fetch_scores(name)
            try:
                scores = cls.load(fetched.path, shape=shape)
            except ScoresError as error:
                raise ScoresError(str(error).replace(str(fetched.path), str(fetched.pinned))) from error
            return replace(scores, metadata=fetched.with_origin(scores.metadata))
        if os.path.isfile(name) or is_adapter(Path(name)):
            return cls.load(name, shape=shape)
        folder = shipped("score_artifacts")
        for candidate in (folder / name, folder / f"{name}.npz"):
            if os.path.isfile(candidate):
                return cls.load(candidate)
        known = ", ".join(sorted(p.stem for p in folder.glob("*.npz"))) or "none"
        raise ScoresError(
            f"no scores {name!r}: expected a file, an exported adapter, hf://owner/repo/file.npz, or a "
            f"shipped artifact ({known})"
        )


def check_output(path: Path) -> None:
    """Raise `ScoresError` unless `path` is an artifact's, and `TruthGateError` unless it can be written."""
    if path.suffix != ".npz":
        raise ScoresError(f"a score artifact is an .npz file; got {path.name!r}")
    if not path.parent.is_dir():
        raise ScoresError(f"the folder of {path} does not exist; make it first")
    check_writable(path)


def _as_float32(name: str, array: Any) -> NDArray[np.float32]:
    array = np.asarray(array)
    if array.dtype.kind not in "fiu":
        raise ScoresError(f"{name} holds {array.dtype}, expected numbers")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused
        array = array.astype(np.float32)
    # AUROC is undefined where all labels are equal, so only that array may hold NaN.
    if name != "auroc" and not np.isfinite(array).all():
        index = np.argwhere(~np.isfinite(array))[0].tolist()
        raise ScoresError(f"{name} holds NaN or infinite values at [layer, head, ...] = {index}")
    return array
