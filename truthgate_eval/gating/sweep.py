"""Which gate to recommend: a grid of settings, each judged on held-out data, and the choice.

Settings are chosen on a fixed fifth of the documents, and only the choice is judged on the rest
(METHOD.md, "Soft gate"). Questions about one picture are never on both sides.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.table import Table

from truthgate_eval.errors import GateError, TaskError
from truthgate_eval.gating.attention_layout import check_site
from truthgate_eval.gating.gate import NORMS
from truthgate_eval.gating.gate_config import GateConfig, parse_layers
from truthgate_eval.gating.scores import TruthScores

SELECTION, REST = "selection", "evaluation"
_PARTS = 5  # the selection is one part of this many
_CLUSTER_FIELDS = ("image", "image_id", "image_source", "image_path", "question")

Places = dict[str, list[int]]  # numbers of documents by part


@dataclass(frozen=True)
class Candidate:
    """One setting and how it did; lam = 0 is the vanilla model, whatever norm and site say.

    Attributes:
        lam: Strength of the gate.
        norm: Normalisation of the scores.
        site: Where the gate acts.
        value: The metric.
        stderr: The metric's standard error as the host gives it, or None.
        documents: How many were judged.
    """

    lam: float
    norm: str
    site: str
    value: float = float("nan")
    stderr: float | None = None
    documents: int = 0

    @property
    def label(self) -> tuple[float, str, str]:
        """What tells it from other points of a grid."""
        return self.lam, self.norm, self.site


@dataclass(frozen=True)
class EvalResult:
    """How one gate did on one part of the data: see `Point`."""

    value: float
    stderr: float | None
    documents: int


class Evaluator(Protocol):
    """A loaded model with tasks, under one of the hosts.

    Attributes:
        modality: `text` or `image`, for the recommendation.
    """

    modality: str

    def evaluate(self, gate: GateConfig, part: str, output: Path | None = None) -> EvalResult:
        """Run the tasks' documents of a part; `output` is a folder for the host's own result files."""


def make_grid(*, lam: str, norm: str, site: str) -> list[Candidate]:
    """The settings of comma-separated lists, with the vanilla model once in front.

    Raises:
        GateError: A value is not one that exists.
    """
    try:
        strengths = [float(value) for value in lam.split(",")]
    except ValueError:
        raise GateError(f"--lam {lam}: expected numbers, comma-separated") from None
    norms, sites = norm.split(","), site.split(",")
    for value in norms:
        if value not in NORMS:
            raise GateError(f"unknown norm {value!r}: expected one of {', '.join(NORMS)}")
    for value in sites:
        check_site(value)
    vanilla = Candidate(0.0, norms[0], sites[0])
    gated = [Candidate(x, n, s) for s in sites for n in norms for x in strengths if x != 0]
    return [vanilla, *dict.fromkeys(gated)]


def split_documents(documents: Sequence[Mapping[str, Any]]) -> list[str]:
    """`selection` or `evaluation` for every document of a task.

    The documents' own `subset` counts, if they have one. Otherwise the fifth of the pictures (or
    questions) whose hashes are smallest is the selection: the same in every run, and at least one.

    Args:
        documents: As the task gives them, without their pictures' content.
    """
    if documents and all(document.get("subset") in (SELECTION, REST) for document in documents):
        return [str(document["subset"]) for document in documents]
    clusters = [_cluster(document, number) for number, document in enumerate(documents)]
    names = sorted(
        set(clusters), key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    )
    selected = set(names[: max(1, round(len(names) / _PARTS))])
    return [SELECTION if name in selected else REST for name in clusters]


def split_indices(
    task: str, documents: Sequence[Mapping[str, Any]], limits: Mapping[str, int | None]
) -> Places:
    """The numbers of a task's documents in either part, the first so many of each.

    Raises:
        TaskError: A part is empty.
    """
    parts = split_documents(documents)
    found = {part: [n for n, own in enumerate(parts) if own == part] for part in (SELECTION, REST)}
    for part, places in found.items():
        if not places:
            raise TaskError(f"task {task!r}: of its {len(documents)} documents none is in the {part} part")
    return {part: places[: limits.get(part)] for part, places in found.items()}


def _cluster(document: Mapping[str, Any], number: int) -> str:
    """What a document shares with others: its picture or its question."""
    names = (name for name in _CLUSTER_FIELDS if isinstance(document.get(name), str | int))
    field = next(names, None)
    return f"{field}:{document[field]}" if field else f"document:{number}"


def candidate_gate(
    artifact: TruthScores, source: str, point: Candidate, layers: str | None = None
) -> GateConfig:
    """A point as the settings of a model; `layers` are those to gate, and None gates all of them."""
    if point.lam == 0:
        return GateConfig.parse("none")
    settings = GateConfig.parse(artifact, lam=point.lam, norm=point.norm, site=point.site)
    # Set here, since None would take what an earlier sweep recommended in the artifact.
    return dataclasses.replace(settings, source=source, layers=parse_layers(layers))


def lowest_gated_layer(layers: str | None, count: int) -> int:
    """The first gated one of a model's `count` layers: how many below it no setting changes.

    Raises:
        GateError: The model has no such layers.
    """
    numbers = parse_layers(layers)
    if numbers is None:
        return 0
    if numbers[-1] >= count:
        raise GateError(f"--layers {layers}: this model's layers are 0 to {count - 1}")
    return numbers[0]


def best_candidate(points: Sequence[Candidate]) -> Candidate:
    """The highest value; of equals, the gentlest gate: the smallest |lam|, then the first given."""
    return max(points, key=lambda point: (point.value, -abs(point.lam)))


def recommend(
    artifact: TruthScores, chosen: Candidate, points: Sequence[Candidate], *, tasks: str, metric: str, modality: str,
    layers: str | None = None,
) -> TruthScores:  # fmt: skip
    """The artifact with the choice, and every point that led to it, in its metadata."""
    recommended: dict[str, Any] = {
        "lam": chosen.lam,
        "norm": chosen.norm,
        "site": chosen.site,
        "modality": modality,
        "task": tasks,
        "metric": metric,
        "subset": SELECTION,
        **({} if layers is None else {"layers": layers}),
        "points": [dataclasses.asdict(point) for point in points],
    }
    return dataclasses.replace(artifact, metadata={**artifact.metadata, "recommended": recommended})


def format_candidates(points: Sequence[Candidate], metric: str) -> Table:
    """All points, the chosen one marked."""
    chosen = best_candidate(points)
    result = Table(title=f"{metric} on the held-out fifth, n = {points[0].documents}", title_justify="left")
    for column in ("lam", "norm", "site", metric, "± stderr", ""):
        result.add_column(column, justify="right" if column in ("lam", metric, "± stderr") else "left")
    for point in points:
        names = ("-", "-") if point.lam == 0 else (point.norm, point.site)
        mark = "chosen" if point is chosen else ""
        error = "" if point.stderr is None else f"{point.stderr:.4f}"
        result.add_row(f"{point.lam:g}", *names, f"{point.value:.4f}", error, mark)
    return result
