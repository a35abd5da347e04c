"""The paper's own figures, as rows that stand beside measured ones and are always marked.

They are read from `published.json`, which holds the paper's tables of HaluEval, POPE and the random gate.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from truthgate_eval.errors import TruthGateError
from truthgate_eval.metrics.pope import SOURCES, SPLITS
from truthgate_eval.paths import PACKAGE

_KINDS = {"none": "vanilla", "llm": "llm", "mllm": "mllm"}
_METRICS = {"acc": "acc", "f1": "f1", "prec": "precision", "rec": "recall"}


@dataclass(frozen=True)
class PublishedRow:
    """One row of the paper's tables.

    Attributes:
        model: The paper's name of the model.
        kind: `vanilla`, `llm`, `mllm` or `random`.
        lam: Strength of the gate, or None.
        cells: For each data set (`halueval`, or a picture source of POPE), for each metric: (mean,
            standard deviation or None) as shares of 1.
    """

    model: str
    kind: str
    lam: float | None
    cells: dict[str, dict[str, tuple[float, float | None]]]


def data_set_of(tasks: Sequence[str]) -> str | None:
    """The paper's data set that a mean over these tasks measures, or None.

    The paper's POPE figures are means over the three splits; lmms-eval's own `pope` pools the splits of
    COCO, which gives the same accuracy and nearly the same F1.
    """
    if list(tasks) in (["halueval_qa"], ["halueval_qa_official"]):
        return "halueval"
    if list(tasks) == ["pope"]:
        return "coco"
    for source in SOURCES:
        if set(tasks) == {f"pope_{source}_{split}" for split in SPLITS}:
            return source
    return None


def paper_name(model: str) -> str | None:
    """The paper's name of a model that is given by hub id, folder or the paper's name; None for others."""
    last = model.rstrip("/").rsplit("/", 1)[-1].lower()
    for name, ids in _tables()["models"].items():
        if last in {name, *(known.rsplit("/", 1)[-1].lower() for known in ids)}:
            return str(name)
    return None


def is_multimodal(name: str) -> bool:
    """Whether the paper's model of that name sees pictures."""
    return name in _tables()["multimodal"]


def published_rows(model: str, choice: str = "auto") -> list[PublishedRow]:
    """The paper's rows to show beside runs of a model.

    Args:
        model: The evaluated model.
        choice: `auto` for the rows of that very model, `none`, `all`, or a model's name.

    Raises:
        TruthGateError: The choice names no model of the paper.
    """
    if choice == "none":
        return []
    if choice == "all":
        return _rows()
    wanted = paper_name(model if choice == "auto" else choice)
    if wanted is None and choice != "auto":
        known = ", ".join(_tables()["models"])
        raise TruthGateError(
            f"the paper has no model {choice!r}: expected auto, none, all, or one of {known}"
        )
    return [row for row in _rows() if row.model == wanted]


@functools.cache
def _tables() -> dict[str, Any]:
    tables: dict[str, Any] = json.loads(
        (PACKAGE / "analysis" / "leaderboard" / "published.json").read_text(encoding="utf-8")
    )
    return tables


def _rows() -> list[PublishedRow]:
    tables = _tables()
    halueval = [
        PublishedRow(row["model"], _KINDS[row["gate"]], row.get("lam"), {"halueval": _cells(row)})
        for row in tables["halueval"]["rows"]
    ]
    pope = [
        PublishedRow(row["model"], kind, row.get("lam"), {name: _cells(row[name]) for name in SOURCES})
        for table, kinds in (("pope", _KINDS), ("pope_random_gate", {}))
        for row in tables[table]["rows"]
        for kind in [kinds.get(row.get("gate"), "random")]
    ]
    order = list(tables["models"])
    return sorted([*halueval, *pope], key=lambda row: order.index(row.model))


def _cells(row: Mapping[str, Any]) -> dict[str, tuple[float, float | None]]:
    cells = {}
    for theirs, ours in _METRICS.items():
        if theirs in row:
            mean, sd = row[theirs] if isinstance(row[theirs], list) else (row[theirs], None)
            cells[ours] = (round(mean / 100, 6), None if sd is None else round(sd / 100, 6))
    return cells
