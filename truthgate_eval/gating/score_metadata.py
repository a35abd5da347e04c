"""The metadata of a score artifact that comes from elsewhere: what is read and shown has its type checked.

An entry of another type would fail where it is used, long after the file was read. Entries that nobody reads
may be anything.
"""

from __future__ import annotations

import sys
from typing import Any

from truthgate_eval.errors import ScoresError, shorten
from truthgate_eval.files import parse_json

_MAX_BYTES = 4 << 20
_TEXTS = ("model", "task", "site", "kind", "score", "family", "architecture", "imported_from", "format")
_RELIABILITY = {"all": float, "within": float}
# A type, [type of the items], or {name: type} for the entries that are there.
_SCHEMA: dict[str, Any] = {
    **dict.fromkeys(_TEXTS, str),
    "probe": {"class_balance": float},
    "recommended": {"conditions": {}},
    "controls": {},
    "versions": {},
    "hub": {},
    "reliability": _RELIABILITY,
    "validation_reliability": _RELIABILITY,
    "answer_words": [str],
    "own_answers": {
        "documents": float,
        "accuracy": float,
        "log_probability": float,
        "words": float,
        "says": str,
        "spellings": [{"answers": [str], "log_probability": float}],
    },
}
# Entries of `own_answers` that are never there without another one.
_TOGETHER = {"accuracy": "documents", "spellings": "words"}
_WORDS = {str: "a text", float: "a number", list: "a list", dict: "an object"}


def parse_metadata(content: bytes) -> dict[str, Any]:
    """The metadata of an artifact.

    Args:
        content: Their JSON.

    Raises:
        DataError: The content is not JSON, or too large.
        ScoresError: They are no object, or an entry has another type than artifacts have.
    """
    metadata = parse_json(content, "the metadata", most=_MAX_BYTES, unique_names=True)
    if not isinstance(metadata, dict):
        raise ScoresError(f"holds metadata that are no JSON object, but {type(metadata).__name__}")
    for name, schema in _SCHEMA.items():
        is_there = metadata.get(name) is not None or isinstance(schema, dict)
        if name in metadata and is_there:
            _check(metadata[name], schema, name)
    own = metadata.get("own_answers", {})
    for name, other in _TOGETHER.items():
        if name in own and other not in own:
            raise ScoresError(f"the metadata's `own_answers` has {name} without {other}")
    spellings = own.get("spellings")
    if spellings and not any(one.get("probed") for one in spellings):
        raise ScoresError("the metadata's `own_answers.spellings` has none that is marked as probed")
    return metadata


def _check(value: Any, schema: Any, name: str) -> None:
    """Raise `ScoresError` unless a value has the type of its schema."""
    kind = schema if isinstance(schema, type) else type(schema)
    if kind is float:
        # Log-probabilities are shown as probabilities, and may be rounded to more than 0.
        most = 1 if name.endswith((".log_probability", ".words")) else sys.float_info.max
        good = isinstance(value, int | float) and -sys.float_info.max <= value <= most
    else:
        good = isinstance(value, kind)
    if not good:
        raise ScoresError(f"the metadata's `{name}` is {shorten(value)}, expected {_WORDS[kind]}")
    if isinstance(schema, dict):
        for inner, own in schema.items():
            if inner in value:
                _check(value[inner], own, f"{name}.{inner}")
    elif isinstance(schema, list):
        for item in value:
            _check(item, schema[0], f"{name}[]")
            missing = [key for key in schema[0] if key not in item] if isinstance(item, dict) else []
            if missing:
                raise ScoresError(f"the metadata's `{name}` has an entry without {missing[0]}")
