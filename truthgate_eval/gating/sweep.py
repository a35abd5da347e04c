"""The search for a gate to recommend: a grid of candidates, the choice of one, and where it is kept.

Candidates are evaluated on the selection split of the documents; only the chosen one is evaluated on the test
split (`docs/method.md#soft-gate`). `truthgate_eval.data.splits` divides the documents.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from truthgate_eval.errors import DataError, GateError, shorten
from truthgate_eval.gating.attention_layout import Site, check_site
from truthgate_eval.gating.gate_arguments import Modality, parse_layers
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.normalization import Norm, check_norm
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.gating.strength import PROMPTS, StrengthTarget, parse_target


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
        lam: Strength of the gate; NaN where it is to be found.
        norm: Normalization of the scores.
        site: Where the gate acts.
        value: The metric; NaN before the evaluation.
        stderr: Its standard error, or None.
        documents: Number of documents evaluated.
        target: Divergence from the vanilla model in nats, where the strength was given so (`kl:0.05`).
        reached: The divergence at the strength that was found.
        stderr_reached: Its standard error over the prompts.
        prompts: On how many prompts it was found.
    """

    lam: float
    norm: Norm
    site: Site
    value: float = float("nan")
    stderr: float | None = None
    documents: int = 0
    target: float | None = None
    reached: float | None = None
    stderr_reached: float | None = None
    prompts: int | None = None

    @classmethod
    def from_record(cls, record: object, where: str) -> Candidate:
        """A candidate as it was written into a file.

        Args:
            record: An object of JSON with the fields; `target` and what follows may be missing.
            where: What the message calls it.

        Raises:
            DataError: It is no such object, or a value has another type.
        """
        fields = record if isinstance(record, Mapping) else {}
        values: dict[str, Any] = {field.name: fields.get(field.name) for field in dataclasses.fields(cls)}
        counts, texts = ("documents", "prompts"), ("norm", "site")
        for name, value in values.items():
            if value is None and name in ("stderr", "target", "reached", "stderr_reached", "prompts"):
                continue
            kind = str if name in texts else int if name in counts else (int, float)
            is_number = isinstance(value, int | float) and (
                value != value or abs(value) <= sys.float_info.max
            )
            if not isinstance(value, kind) or not (name in texts or is_number):
                raise DataError(f"{where} is no candidate of a sweep: its {name} is {shorten(value)}")
        try:
            check_norm(values["norm"])
            check_site(values["site"])
        except GateError as error:
            raise DataError(f"{where} is no candidate of a sweep: {error}") from error
        return cls(**values)

    @property
    def label(self) -> tuple[float | str, str, str]:
        """Identifies the candidate in a grid: (lam as it was given, norm, site)."""
        return self.lam if self.target is None else f"kl:{self.target!r}", self.norm, self.site

    @property
    def strength(self) -> str:
        """Its lam in words, such as `0.734 (kl:0.05)`."""
        number = "" if math.isnan(self.lam) else f"{self.lam:g}"
        return number if self.target is None else f"{number} (kl:{self.target:g})".strip()

    def with_strength(self, gate: GateConfig) -> Candidate:
        """The candidate with the strength that was found for its gate."""
        assert gate.target is not None
        known = gate.target
        return dataclasses.replace(
            self,
            lam=gate.lam,
            reached=known.reached,
            stderr_reached=known.stderr,
            prompts=known.prompts,
        )

    def with_result(self, result: EvalResult) -> Candidate:
        """The candidate with its metric."""
        return dataclasses.replace(self, **dataclasses.asdict(result))


def make_grid(*, lam: str, norm: str, site: str) -> list[Candidate]:
    """The candidates of comma-separated lists, with the vanilla model once, in front.

    A lam of `kl:0.05` is a strength to be found.

    Raises:
        GateError: A value is not one that exists.

    Example:
        >>> [candidate.label for candidate in make_grid(lam="0,1", norm="minmax", site="post,pre")]
        [(0.0, 'minmax', 'post'), (1.0, 'minmax', 'post'), (1.0, 'minmax', 'pre')]
        >>> [candidate.label for candidate in make_grid(lam="kl:0.05", norm="minmax", site="post")]
        [(0.0, 'minmax', 'post'), ('kl:0.05', 'minmax', 'post')]
    """
    strengths = [_parse_strength(value, lam) for value in lam.split(",")]
    norms = [check_norm(value) for value in norm.split(",")]
    sites = [check_site(value) for value in site.split(",")]
    vanilla = Candidate(0.0, norms[0], sites[0])
    gated = [
        Candidate(value, n, s, target=target)
        for s in sites
        for n in norms
        for value, target in strengths
        if value != 0
    ]
    return [vanilla, *{candidate.label: candidate for candidate in gated}.values()]


def _parse_strength(text: str, given: str) -> tuple[float, float | None]:
    """(lam, None), or (NaN, the divergence at which lam is to be found)."""
    target = parse_target(text)
    if target is not None:
        return math.nan, target
    try:
        return float(text), None
    except ValueError:
        raise GateError(f"--lam {given}: expected numbers, or kl:NUMBER, comma-separated") from None


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
    target = None
    if candidate.target is not None:
        target = StrengthTarget(
            "lam",
            candidate.target,
            PROMPTS if candidate.prompts is None else candidate.prompts,
            reached=candidate.reached,
            stderr=candidate.stderr_reached,
        )
    return GateConfig(
        source,
        artifact,
        target=target,
        lam=0.0 if math.isnan(candidate.lam) else float(candidate.lam),
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


def best_candidate(candidates: Sequence[Candidate], *, smallest: bool = False) -> Candidate:
    """The candidate with the best value; of equals the one with the smallest |lam|, then the first.

    Args:
        candidates: The candidates, with their metrics.
        smallest: The metric is a loss, of which the smallest value is the best.
    """
    sign = -1 if smallest else 1
    return max(candidates, key=lambda candidate: (sign * candidate.value, -abs(candidate.lam)))


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
    conditions: Mapping[str, Any] | None = None,
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
        conditions: Model arguments that changed every candidate's answers, and the vanilla model's, such as
            `contrast`; the choice holds with them.
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
        **({"conditions": dict(conditions)} if conditions else {}),
        **_found_strength(chosen),
        "points": [dataclasses.asdict(candidate) for candidate in candidates],
    }
    return dataclasses.replace(artifact, metadata={**artifact.metadata, "recommended": recommended})


def _found_strength(chosen: Candidate) -> dict[str, Any]:
    """For a recommendation: by which divergence its lam was found, and on how many prompts."""
    if chosen.target is None:
        return {}
    numbers = {"reached": chosen.reached, "stderr": chosen.stderr_reached, "prompts": chosen.prompts}
    return {"strength": {"target": chosen.target, **numbers}}
