"""Score artifacts of a family: their names, whether they can be correlated, and the correlations.

A family is a base model and the models that were fine-tuned from it. The method claims that their truthful
heads are largely the same (`docs/method.md#the-method`).
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from truthgate_eval.analysis.heads.correlation import (
    SCOPES,
    Array,
    Correlation,
    Measure,
    Scope,
    correlate,
    has_variance,
)
from truthgate_eval.analysis.named_path import split_named_path
from truthgate_eval.errors import ScoresError
from truthgate_eval.gating.scores import TruthScores

SCORE_SUFFIXES = (".npz", ".npy", ".csv")
_COLUMNS = ("first", "second", "same_family", "scope", "measure", "r", "low", "high", "p", "p_holm")
_WHERE: dict[Scope, str] = {"all heads": "between heads", "within layers": "between the heads of any layer"}


@dataclass(frozen=True, eq=False)
class FamilyMember:
    """One artifact of a comparison.

    Attributes:
        label: Its name in tables and plots; no two members share it.
        family: Its family, or None where neither the user nor the metadata names it.
        source: The file or name that it was read from, as the user wrote it.
        scores: The artifact.
    """

    label: str
    family: str | None
    source: str
    scores: TruthScores


@dataclass(frozen=True, eq=False)
class FamilyMatrix:
    """The members, with those of one family next to each other, and the correlations of every pair.

    Attributes:
        members: The artifacts.
        correlations: One per pair, scope and measure; `first` and `second` are indices of `members`.
        settings: Permutations, confidence and seed.
    """

    members: list[FamilyMember]
    correlations: list[Correlation]
    settings: dict[str, float]

    def coefficients(self, measure: Measure, scope: Scope) -> Array:
        """The symmetric matrix [members, members] of one coefficient, with ones on the diagonal."""
        matrix = np.eye(len(self.members))
        for one in self.correlations:
            if (one.measure, one.scope) == (measure, scope):
                matrix[one.first, one.second] = matrix[one.second, one.first] = one.r
        return matrix

    def pair(self, measure: Measure, scope: Scope, first: int, second: int) -> Correlation:
        """The correlation of two different members, in either order."""
        wanted = (min(first, second), max(first, second), measure, scope)
        return next(c for c in self.correlations if (c.first, c.second, c.measure, c.scope) == wanted)

    def same_family(self, one: Correlation) -> bool | None:
        """Whether a pair is in one family; None where a family is not known."""
        first, second = self.members[one.first].family, self.members[one.second].family
        return None if first is None or second is None else first == second


def correlate_family(
    members: Sequence[FamilyMember], *, permutations: int = 9999, confidence: float = 0.95, seed: int = 0
) -> FamilyMatrix:
    """Correlate every pair of members; see `correlation.correlate` for the statistics.

    Raises:
        ScoresError: There are fewer than two members, two have one label, numbers of layers or heads
            differ, or scores do not differ between heads.
    """
    check_members(members)
    if not 0 < confidence < 1:
        raise ScoresError(f"confidence {confidence:g}: expected a number between 0 and 1, such as 0.95")
    families = list(dict.fromkeys(member.family for member in members))
    # Members of unknown family come last, so that they do not look like a family.
    families.sort(key=lambda family: family is None)
    ordered = sorted(members, key=lambda member: families.index(member.family))
    settings = {"permutations": permutations, "confidence": confidence, "seed": seed}
    arrays = [member.scores.scores for member in ordered]
    found = correlate(arrays, permutations=permutations, confidence=confidence, seed=seed)
    return FamilyMatrix(ordered, found, settings)


def read_member(argument: str) -> FamilyMember:
    """Read an artifact as the command line names it.

    Args:
        argument: `FILE`, `NAME=FILE` or `FAMILY/NAME=FILE`. FILE is what `TruthScores.resolve` takes.
            The label is NAME, else the file's own name. The family is FAMILY, else the metadata's `family`.

    Raises:
        TruthGateError: There are no such scores.
    """
    label, source = split_named_path(argument, "FILE, NAME=FILE or FAMILY/NAME=FILE")
    scores = TruthScores.resolve(source)
    family, _, name = (label or "").rpartition("/")
    if not name:
        path = Path(source)
        name = path.stem if path.suffix.lower() in SCORE_SUFFIXES else path.name
    stated = scores.metadata.get("family")
    return FamilyMember(name, family or (stated if isinstance(stated, str) else "") or None, source, scores)


def check_members(members: Sequence[FamilyMember]) -> None:
    """Raise `ScoresError` unless the members can be correlated head by head."""
    if len(members) < 2:
        raise ScoresError(f"a correlation needs two artifacts or more, got {len(members)}")
    label, times = Counter(member.label for member in members).most_common(1)[0]
    if times > 1:
        raise ScoresError(f"{times} artifacts are called {label!r}: tell them apart with NAME=FILE")
    first, *others = members
    for member in others:
        if member.scores.shape != first.scores.shape:
            raise ScoresError(
                f"{member.label} has {_geometry(member)}, but {first.label} has {_geometry(first)}: "
                "heads of different architectures cannot be paired; leave one of them out"
            )
    for member in members:
        for scope in SCOPES:
            if not has_variance(member.scores.scores, scope):
                raise ScoresError(
                    f"the scores of {member.label} do not differ {_WHERE[scope]}: "
                    "no correlation is defined; leave it out"
                )


def different_settings(members: Sequence[FamilyMember]) -> str | None:
    """A warning if the members were probed at different sites; None otherwise."""
    sites = [(member.label, member.scores.metadata.get("site")) for member in members]
    if len({site for _, site in sites if site}) < 2:
        return None
    listed = ", ".join(f"{label} {site or 'unknown'}" for label, site in sites)
    return f"the artifacts were probed at different sites ({listed}): a head means another vector at each"


def _geometry(member: FamilyMember) -> str:
    return "{} layers x {} heads".format(*member.scores.shape)


def as_csv(family: FamilyMatrix) -> str:
    """CSV with one line per pair, scope and measure."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_rows(family))
    return text.getvalue()


def as_json(family: FamilyMatrix) -> str:
    """JSON with the members' provenance, the settings and all correlations."""
    members = [
        {
            "label": member.label,
            "family": member.family,
            "source": member.source,
            "sha256": member.scores.fingerprint,
            "layers": member.scores.shape[0],
            "heads": member.scores.shape[1],
            **{key: member.scores.metadata.get(key) for key in ("model", "task", "site")},
        }
        for member in family.members
    ]
    content = {"settings": family.settings, "members": members, "correlations": _rows(family)}
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _rows(family: FamilyMatrix) -> list[dict[str, Any]]:
    labels = [member.label for member in family.members]
    return [
        {
            "first": labels[one.first],
            "second": labels[one.second],
            "same_family": family.same_family(one),
            "scope": one.scope,
            "measure": one.measure,
            **{name: _number(getattr(one, name)) for name in ("r", "low", "high", "p", "p_holm")},
        }
        for one in family.correlations
    ]


def _number(value: float) -> float | None:
    """Eight significant digits; None where there is no interval."""
    return float(f"{value:.8g}") if math.isfinite(value) else None
