"""Head maps that others published, in the formats of their code.

* AllPath: JSON lines `[[layer, head], value]`, one for each head.
* Retrieval heads (Wu et al. 2024, also DeCoRe): a JSON object `{"layer-head": [scores]}`; the mean counts.
* Lists of heads: `[[layer, head], ...]` with or without a sign `[layer, head, -1]`, or AD-HH's object
  `{"hal_heads": [...], "non_hal_heads": [...]}`; listed heads score 1, those to be removed -1, others 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from truthgate_eval.errors import ScoresError, shorten
from truthgate_eval.files import parse_json, read_bounded, read_json

Shape = tuple[int, int]
# AD-HH's names of its lists, and what a head in them scores.
_SIGNED_LISTS = {"hal_heads": -1.0, "non_hal_heads": 1.0}
# A head beyond these is a damaged file, and an array that large would not fit in memory.
_MOST = 1024
_MAX_LINES = 4 << 20  # bytes of a file with a line for each head
_LARGEST = float(np.finfo(np.float32).max)


def read_head_map(path: Path, shape: Shape | None = None) -> dict[str, Any]:
    """Scores and metadata out of a published head map.

    Args:
        path: A `.json` or `.jsonl` file.
        shape: (layers, heads) of the model. A list of heads needs it; a map of all heads must fill it.

    Returns:
        Keyword arguments of `TruthScores`.

    Raises:
        ScoresError: The file is in none of the formats, or does not fit the shape.
    """
    if path.suffix == ".jsonl":
        values, kind = _read_allpath(path), "allpath"
    else:
        values, kind = _read_json_map(path)
    is_list = kind == "head list"
    if is_list and shape is None:
        raise ScoresError(
            "is a list of heads, which does not say how many the model has: make an artifact of it with "
            "`truthgate import FILE --shape LAYERSxHEADS ...`"
        )
    found = shape or (1 + max(layer for layer, _ in values), 1 + max(head for _, head in values))
    outside = [head for head in values if head[0] >= found[0] or head[1] >= found[1]]
    if outside:
        raise ScoresError(
            f"names layer {outside[0][0]}, head {outside[0][1]}; the model has {found[0]} x {found[1]}"
        )
    if not is_list and len(values) != found[0] * found[1]:
        raise ScoresError(f"scores {len(values)} heads, expected all {found[0]} x {found[1]}")
    scores = np.zeros(found, dtype=np.float32)
    for (layer, head), value in values.items():
        scores[layer, head] = value
    return {"scores": scores, "metadata": {"imported_from": path.name, "kind": kind}}


def is_head_list(path: Path) -> bool:
    """Whether a file is a list of heads, which does not say how many the model has.

    Raises:
        ScoresError: A `.json` file is not JSON.
    """
    return path.suffix == ".json" and _is_list(read_json(path))


def parse_shape(text: str) -> Shape:
    """(layers, heads) out of `32x32`.

    Raises:
        ScoresError: It is not of that form.

    Example:
        >>> parse_shape("28x12")
        (28, 12)
    """
    match = re.fullmatch(r"([0-9]{1,4})\s*x\s*([0-9]{1,4})", text.strip())
    if match is None or not 0 < int(match[1]) <= _MOST or not 0 < int(match[2]) <= _MOST:
        raise ScoresError(f"--shape {text}: expected LAYERSxHEADS, such as 32x32")
    return int(match[1]), int(match[2])


def _read_allpath(path: Path) -> dict[Shape, float]:
    values: dict[Shape, float] = {}
    for number, line in enumerate(read_bounded(path, _MAX_LINES).split(b"\n"), 1):
        if not line.strip():
            continue
        row = parse_json(line, f"line {number}")
        if not isinstance(row, list) or len(row) != 2:
            raise ScoresError(f"line {number} is not [[layer, head], value]")
        _add(values, _head(row[0], f"line {number}"), row[1], f"line {number}")
    if not values:
        raise ScoresError("holds no heads")
    return values


def _is_list(content: Any) -> bool:
    return isinstance(content, list) or bool(
        isinstance(content, dict) and content.keys() & _SIGNED_LISTS.keys()
    )


def _read_json_map(path: Path) -> tuple[dict[Shape, float], str]:
    content = read_json(path)
    values: dict[Shape, float] = {}
    if _is_list(content):
        lists = (
            [(content, 1.0)]
            if isinstance(content, list)
            else [(content.get(name, []), sign) for name, sign in _SIGNED_LISTS.items()]
        )
        for heads, sign in lists:
            _add_list(values, heads, sign)
        return values, "head list"
    if isinstance(content, dict) and content:
        for name, scores in content.items():
            match = re.fullmatch(r"([0-9]{1,4})-([0-9]{1,4})", name)
            if (
                match is None
                or max(int(match[1]), int(match[2])) >= _MOST
                or not isinstance(scores, list)
                or not scores
            ):
                raise ScoresError(f'entry {shorten(name)} is not "layer-head": [scores]')
            numbers = [_number(score, name) for score in scores]
            _add(values, (int(match[1]), int(match[2])), float(np.mean(numbers)), name)
        return values, "retrieval"
    raise ScoresError('is no head map: expected {"layer-head": [scores]} or [[layer, head], ...]')


def _add_list(values: dict[Shape, float], heads: Any, sign: float) -> None:
    if not isinstance(heads, Iterable):
        raise ScoresError(f"holds {shorten(heads)} where a list of heads was expected")
    for number, head in enumerate(heads, 1):
        where = f"head {number} of the list"
        signed = isinstance(head, list) and len(head) == 3
        own = _number(head[2], where) if signed else sign
        _add(values, _head(head[:2] if signed else head, where), own, where)


def _add(values: dict[Shape, float], head: Shape, value: Any, where: str) -> None:
    if head in values:
        raise ScoresError(f"{where}: layer {head[0]}, head {head[1]} was there before")
    values[head] = _number(value, where)


def _head(value: Any, where: str) -> Shape:
    if (
        isinstance(value, list)
        and len(value) == 2
        and all(type(number) is int and 0 <= number < _MOST for number in value)
    ):
        return value[0], value[1]
    raise ScoresError(f"{where}: {shorten(value)} is not [layer, head]")


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise ScoresError(f"{where}: {shorten(value)} is not a finite number")
    return float(value)
