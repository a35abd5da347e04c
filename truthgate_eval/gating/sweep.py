"""The search for a gate to recommend: a grid of candidates, the choice of one, and where it is kept.

Candidates are evaluated on the selection split of the documents; only the chosen one is evaluated on the test
split (`docs/method.md#soft-gate`). `truthgate_eval.data.splits` divides the documents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from truthgate_eval.errors import GateError
from truthgate_eval.gating.attention_layout import Site, check_site
from truthgate_eval.gating.gate import Norm, check_norm
from truthgate_eval.gating.gate_config import GateConfig, Modality, parse_layers
from truthgate_eval.gating.scores import TruthScores


@dataclass(frozen=True)
class EvalResult:
    """The metric of one gate on one split.

    Attributes:
        value: The metric, a mean over tasks.
        stderr: Its standard error, or None if the harness reports none.
        documents: Number of documents evaluated.
    """

    value: float
    stderr: float | None
    documents: int


@dataclass(frozen=True)
class Candidate:
    """One setting of the gate and its metric; lam = 0 is the vanilla model, for any norm and site.

    The fields' names are the keys of `points.jsonl` and of `recommended["points"]` in an artifact.

    Attributes:
        lam: Strength of the gate.
        norm: Normalization of the scores.
        site: Where the gate acts.
        value: The metric; NaN before the evaluation.
        stderr: Its standard error, or None.
        documents: Number of documents evaluated.
    """

    lam: float
    norm: Norm
    site: Site
    value: float = float("nan")
    stderr: float | None = None
    documents: int = 0

    @property
    def label(self) -> tuple[float, str, str]:
        """Identifies the candidate in a grid: (lam, norm, site)."""
        return self.lam, self.norm, self.site

    def with_result(self, result: EvalResult) -> Candidate:
        """The candidate with its metric."""
        return dataclasses.replace(self, **dataclasses.asdict(result))


def make_grid(*, lam: str, norm: str, site: str) -> list[Candidate]:
    """The candidates of comma-separated lists, with the vanilla model once, in front.

    Raises:
        GateError: A value is not one that exists.

    Example:
        >>> [candidate.label for candidate in make_grid(lam="0,1", norm="minmax", site="post,pre")]
        [(0.0, 'minmax', 'post'), (1.0, 'minmax', 'post'), (1.0, 'minmax', 'pre')]
    """
    try:
        lams = [float(value) for value in lam.split(",")]
    except ValueError:
        raise GateError(f"--lam {lam}: expected numbers, comma-separated") from None
    norms = [check_norm(value) for value in norm.split(",")]
    sites = [check_site(value) for value in site.split(",")]
    vanilla = Candidate(0.0, norms[0], sites[0])
    gated = [Candidate(value, n, s) for s in sites for n in norms for value in lams if value != 0]
    return [vanilla, *dict.fromkeys(gated)]


def candidate_gate(
    artifact: TruthScores, source: str, candidate: Candidate, layers: str | None = None
) -> GateConfig:
    """The gate of a candidate.

    Args:
        artifact: The truth scores.
        source: Their file or name, for results files.
        candidate: The candidate.
        layers: The layers to gate, as in `GateConfig.parse`; None gates all, also where the artifact
            recommends some.
    """
    if candidate.lam == 0:
        return GateConfig.parse("none")
    return GateConfig(
        source,
        artifact,
        lam=float(candidate.lam),
        norm=candidate.norm,
        site=candidate.site,
        layers=parse_layers(layers),
    )


def lowest_gated_layer(layers: str | None, count: int) -> int:
    """The first gated layer, which is also the number of layers below it that no candidate changes.

    Args:
        layers: The layers to gate, as in `GateConfig.parse`; None for all.
        count: Number of the model's layers.

    Raises:
        GateError: The model has no such layers.
    """
    numbers = parse_layers(layers)
    if numbers is None:
        return 0
    if numbers[-1] >= count:
        raise GateError(f"--layers {layers}: this model's layers are 0 to {count - 1}")
    return numbers[0]


def best_candidate(candidates: Sequence[Candidate]) -> Candidate:
    """The candidate with the highest value; of equals the one with the smallest |lam|, then the first."""
    return max(candidates, key=lambda candidate: (candidate.value, -abs(candidate.lam)))


def recommend(
    artifact: TruthScores,
    chosen: Candidate,
    candidates: Sequence[Candidate],
    *,
    tasks: str,
    metric: str,
    modality: Modality,
    split: str,
    layers: str | None = None,
) -> TruthScores:
    """The artifact with the chosen gate, and all candidates, in its metadata.

    Args:
        artifact: The truth scores.
        chosen: The chosen candidate.
        candidates: All candidates, with their metrics.
        tasks: The tasks that they were evaluated on, comma-separated.
        metric: The metric's name.
        modality: `text` or `image`.
        split: The split that they were evaluated on.
        layers: The layers that every candidate gated; None for all.
    """
    recommended: dict[str, Any] = {
        "lam": chosen.lam,
        "norm": chosen.norm,
        "site": chosen.site,
        "modality": modality,
        "task": tasks,
        "metric": metric,
        "subset": split,
        **({} if layers is None else {"layers": layers}),
        "points": [dataclasses.asdict(candidate) for candidate in candidates],
    }
    return dataclasses.replace(artifact, metadata={**artifact.metadata, "recommended": recommended})


def format_candidates(candidates: Sequence[Candidate], metric: str) -> Table:
    """A table of all candidates with the chosen one marked, for the terminal."""
    chosen = best_candidate(candidates)
    title = f"{metric} on the held-out fifth, n = {candidates[0].documents}"
    table = Table(title=title, title_justify="left")
    for column in ("lam", "norm", "site", metric, "± stderr", ""):
        table.add_column(column, justify="right" if column in ("lam", metric, "± stderr") else "left")
    for candidate in candidates:
        names = ("-", "-") if candidate.lam == 0 else (candidate.norm, candidate.site)
        stderr = "" if candidate.stderr is None else f"{candidate.stderr:.4f}"
        mark = "chosen" if candidate is chosen else ""
        table.add_row(f"{candidate.lam:g}", *names, f"{candidate.value:.4f}", stderr, mark)
    return table
