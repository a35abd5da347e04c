"""The paper's own figures, as rows beside measured ones, always marked as published.

They are in `published.json`: the paper's tables of HaluEval, POPE and the random gate.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from truthgate_eval.analysis.runs.methods import Method
from truthgate_eval.analysis.runs.paper_models import PAPER_MODELS, paper_name
from truthgate_eval.errors import TruthGateError
from truthgate_eval.metrics.pope import SOURCES, SPLITS
from truthgate_eval.paths import PACKAGE

_METHODS: dict[str, Method] = {"none": "vanilla", "llm": "llm", "mllm": "mllm"}
_METRICS = {"acc": "acc", "f1": "f1", "prec": "precision", "rec": "recall"}


@dataclass(frozen=True)
class PublishedRow:
    """One row of the paper's tables.

    Attributes:
        model: The paper's name of the model.
        method: `vanilla`, `llm`, `mllm` or `random`.
        lam: Strength of the gate, or None.
        cells: For each data set (`halueval`, or an image source of POPE), for each metric: (mean, standard
            deviation or None) as shares of 1.
    """

    model: str
    method: Method
    lam: float | None
    cells: dict[str, dict[str, tuple[float, float | None]]]


def data_set_of(tasks: Sequence[str]) -> str | None:
    """The paper's data set that a mean over these tasks measures, or None.

    The paper's POPE figures are means over the three splits. lmms-eval's own `pope` pools the splits of
    COCO, which gives the same accuracy and nearly the same F1.

    Example:
        >>> data_set_of(["pope_gqa_random", "pope_gqa_popular", "pope_gqa_adversarial"])
        'gqa'
    """
    if list(tasks) in (["halueval_qa"], ["halueval_qa_official"]):
        return "halueval"
    if list(tasks) == ["pope"]:
        return "coco"
    for source in SOURCES:
        if set(tasks) == {f"pope_{source}_{split}" for split in SPLITS}:
            return source
    return None


def published_rows(model: str, choice: str = "auto") -> list[PublishedRow]:
    """The paper's rows to show beside runs of a model.

    Args:
        model: The evaluated model.
        choice: `auto` for the rows of this model, `none`, `all`, or a model's name.

    Raises:
        TruthGateError: The choice is not a model of the paper.
    """
    if choice == "none":
        return []
    if choice == "all":
        return _rows()
    wanted = paper_name(model if choice == "auto" else choice)
    if wanted is None and choice != "auto":
        known = ", ".join(PAPER_MODELS)
        raise TruthGateError(
            f"the paper has no model {choice!r}: expected auto, none, all, or one of {known}"
        )
    return [row for row in _rows() if row.model == wanted]


@functools.cache
def _tables() -> dict[str, Any]:
    file = PACKAGE / "analysis" / "leaderboard" / "published.json"
    tables: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return tables


def _rows() -> list[PublishedRow]:
    tables = _tables()
    halueval = [
        PublishedRow(row["model"], _METHODS[row["gate"]], row.get("lam"), {"halueval": _cells(row)})
        for row in tables["halueval"]["rows"]
    ]
    pope = [
        PublishedRow(row["model"], method, row.get("lam"), {name: _cells(row[name]) for name in SOURCES})
        for table, methods in (("pope", _METHODS), ("pope_random_gate", {}))
        for row in tables[table]["rows"]
        for method in [methods.get(row.get("gate"), "random")]
    ]
    order = list(PAPER_MODELS)
    return sorted([*halueval, *pope], key=lambda row: order.index(row.model))


def _cells(row: Mapping[str, Any]) -> dict[str, tuple[float, float | None]]:
    cells = {}
    for theirs, ours in _METRICS.items():
        if theirs in row:
            mean, sd = row[theirs] if isinstance(row[theirs], list) else (row[theirs], None)
            cells[ours] = (round(mean / 100, 6), None if sd is None else round(sd / 100, 6))
    return cells
