"""Files of score arrays: artifacts (`.npz`), bare arrays (`.npy`) and the authors' tables (`.csv`).

They may come from strangers: see `truthgate_eval.files` for the bounds within which they are read.
"""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.errors import ScoresError, first_line, shorten
from truthgate_eval.files import read_bounded
from truthgate_eval.files.numpy_files import read_npy, read_npz
from truthgate_eval.gating.score_metadata import parse_metadata

SCHEMA_VERSION = 1
PER_HEAD = (
    "scores", "stderr", "auroc", "train_accuracy", "probe_bias", "accuracy", "activation_std",
    "mean_difference_std",
)  # fmt: skip
OF_WIDTH = ("probe_weight", "mean_difference")
ARRAYS = (*PER_HEAD, *OF_WIDTH, "seed_scores")
# The file has control_NAME and control_NAME_stderr for each control, and its metadata as a text of JSON.
CONTROL, STDERR, _METADATA = "control_", "_stderr", "metadata"
# No model has more layers, or more heads in a layer.
MOST_HEADS = 1024
_MAX_CSV = 4 << 20  # bytes


def describe_shape(shape: tuple[int, int]) -> str:
    """(layers, heads) in words, such as `32 layers x 32 heads`."""
    return f"{shape[0]} layers x {shape[1]} heads"


def read_npz_scores(path: Path) -> dict[str, Any]:
    """An artifact as keyword arguments of `TruthScores`.

    Raises:
        ScoresError: The file has no scores, or metadata that are none of ours.
        DataError: The file cannot be read.
    """
    arrays, names = read_npz(path, lambda name: name in (*ARRAYS, _METADATA) or name.startswith(CONTROL))
    if "scores" not in arrays:
        raise ScoresError(f"holds no array 'scores', only {shorten(names)}")
    metadata = _read_metadata(arrays.pop(_METADATA, None))
    fields: dict[str, Any] = {name: array for name, array in arrays.items() if name in ARRAYS}
    controls = {name: array for name, array in arrays.items() if name not in fields}
    schema = metadata.get("schema", SCHEMA_VERSION)
    if type(schema) is not int:
        raise ScoresError(f"the metadata's `schema` is {shorten(schema)}, expected a number")
    if schema > SCHEMA_VERSION:
        raise ScoresError(
            f"written in schema {shorten(schema)}, this version reads up to {SCHEMA_VERSION}: update "
            "truthgate_eval"
        )
    fields["control_stderr"] = {
        name.removeprefix(CONTROL).removesuffix(STDERR): array
        for name, array in controls.items()
        if name.endswith(STDERR)
    }
    fields["controls"] = {
        name.removeprefix(CONTROL): array for name, array in controls.items() if not name.endswith(STDERR)
    }
    return {**fields, "metadata": metadata}


def _read_metadata(text: NDArray[np.generic] | None) -> dict[str, Any]:
    if text is None:
        return {}
    if text.dtype.kind != "U" or text.size != 1:
        raise ScoresError("holds metadata that are no text of JSON")
    try:
        content = str(text.item()).encode("utf-8", "surrogatepass")
    except ValueError as error:  # a number that is no character
        raise ScoresError(f"holds metadata that are no text of JSON: {first_line(error)}") from error
    return parse_metadata(content)


def read_npy_scores(path: Path) -> dict[str, Any]:
    """A bare array as keyword arguments of `TruthScores`.

    Raises:
        DataError: The file cannot be read.
    """
    return {"scores": read_npy(path), "metadata": {"imported_from": path.name}}


def read_csv_scores(path: Path) -> dict[str, Any]:
    """The authors' `cv5_head_metrics.csv`: one row per (layer, head), with the head's accuracy.

    Raises:
        ScoresError: It is no such table, or does not have every head once.
        DataError: The file cannot be read.
    """
    content = read_bounded(path, _MAX_CSV)
    cells: dict[tuple[int, int], float] = {}
    try:
        text = content.decode("utf-8-sig")  # Excel writes a byte-order mark
        for number, row in enumerate(csv.DictReader(io.StringIO(text, newline="")), start=2):
            head = (_read_index(row["layer"], number), _read_index(row["head"], number))
            if head in cells:
                raise ScoresError(f"line {number}: layer {head[0]}, head {head[1]} was there before")
            cells[head] = float(row["accuracy"])
    except KeyError as error:
        raise ScoresError("expected a table with the columns layer, head and accuracy") from error
    except (ValueError, TypeError, csv.Error) as error:
        raise ScoresError(f"is not a table of numbers: {first_line(error)}") from error
    if not cells:
        raise ScoresError("expected a table with the columns layer, head and accuracy")
    shape = (max(layer for layer, _ in cells) + 1, max(head for _, head in cells) + 1)
    if len(cells) != shape[0] * shape[1]:
        raise ScoresError(f"{len(cells)} rows do not fill {describe_shape(shape)} once each")
    scores = np.array([[cells[layer, head] for head in range(shape[1])] for layer in range(shape[0])])
    return {"scores": scores, "metadata": {"imported_from": path.name}}


def _read_index(text: str | None, number: int) -> int:
    if text is None or not re.fullmatch(r"\s*[0-9]{1,9}\s*", text) or int(text) >= MOST_HEADS:
        raise ScoresError(f"line {number}: {shorten(text)} is not the number of a layer or head")
    return int(text)
