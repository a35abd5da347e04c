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
from truthgate_eval.escaping import csv_value
from truthgate_eval.gating.head_maps import is_head_list
from truthgate_eval.gating.scores import TruthScores

SCORE_SUFFIXES = (".npz", ".npy", ".csv")
_MAP_SUFFIXES = (".json", ".jsonl")  # a run of a harness may end in them, too
# A map in which more heads than these share one score says little about the order of heads.
_MOST_TIED = 0.5
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


def read_member(argument: str, *, list_shape: tuple[int, int] | None = None) -> FamilyMember:
    """Read an artifact as the command line names it.

    Args:
        argument: `FILE`, `NAME=FILE` or `FAMILY/NAME=FILE`. FILE is what `TruthScores.resolve` takes.
            The label is NAME, else the file's own name. The family is FAMILY, else the metadata's `family`.
        list_shape: (layers, heads) of the model that a list of heads belongs to.

    Raises:
        TruthGateError: There are no such scores.
    """
    label, source = split_named_path(argument, "FILE, NAME=FILE or FAMILY/NAME=FILE")
    path = Path(source)
    if list_shape is not None and path.is_file() and is_head_list(path):
        scores = TruthScores.load(path, shape=list_shape)
    else:
        scores = TruthScores.resolve(source)
    family, _, name = (label or "").rpartition("/")
    if not name:
        name = path.stem if path.suffix.lower() in (*SCORE_SUFFIXES, *_MAP_SUFFIXES) else path.name
    stated = scores.metadata.get("family")
    return FamilyMember(name, family or (stated if isinstance(stated, str) else "") or None, source, scores)


def split_by_geometry(members: Sequence[FamilyMember]) -> tuple[list[list[FamilyMember]], list[FamilyMember]]:
    """Members that can be correlated with each other, and those that can be with no other.

    Args:
        members: Artifacts of any numbers of layers and heads.

    Returns:
        The members of each geometry that two or more have, in the order given, and the others.

    Raises:
        ScoresError: No two members have one geometry, or two have one label.
    """
    _check_labels(members)
    groups: dict[tuple[int, int], list[FamilyMember]] = {}
    for member in members:
        groups.setdefault(member.scores.shape, []).append(member)
    found = [group for group in groups.values() if len(group) > 1]
    if not found:
        check_members(members)
    return found, [member for group in groups.values() if len(group) == 1 for member in group]


def check_members(members: Sequence[FamilyMember]) -> None:
    """Raise `ScoresError` unless the members can be correlated head by head."""
    _check_labels(members)
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


def _check_labels(members: Sequence[FamilyMember]) -> None:
    if len(members) < 2:
        raise ScoresError(f"a correlation needs two artifacts or more, got {len(members)}")
    label, times = Counter(member.label for member in members).most_common(1)[0]
    if times > 1:
        raise ScoresError(f"{times} artifacts are called {label!r}: tell them apart with NAME=FILE")


def left_out_pairs(groups: Sequence[Sequence[FamilyMember]], alone: Sequence[FamilyMember]) -> str | None:
    """A warning that names the geometries between which there are no pairs; None if there is only one."""
    if len(groups) + len(alone) < 2:
        return None
    named = [f"{_geometry(group[0])}: {len(group)} artifacts" for group in groups]
    named += [f"{_geometry(member)}: only {member.label}" for member in alone]
    return (
        "heads of different architectures cannot be paired, so each is compared by itself "
        f"({'; '.join(named)})"
    )


def tied_scores(members: Sequence[FamilyMember]) -> list[str]:
    """A warning for each member most of whose heads have one score, whose order is therefore unknown."""
    warnings = []
    for member in members:
        values, counts = np.unique(member.scores.scores, return_counts=True)
        share = counts.max() / counts.sum()
        if share > _MOST_TIED:
            warnings.append(
                f"{share:.0%} of the heads of {member.label} have one score, {values[counts.argmax()]:g}: "
                "nothing is known of their order"
            )
    return warnings


def different_settings(members: Sequence[FamilyMember]) -> str | None:
    """A warning if the members were probed at different sites; None otherwise."""
    sites = [(member.label, member.scores.metadata.get("site")) for member in members]
    if len({str(site) for _, site in sites if site}) < 2:
        return None
    listed = ", ".join(f"{label} {site or 'unknown'}" for label, site in sites)
    return f"the artifacts were probed at different sites ({listed}): a head means another vector at each"


def _geometry(member: FamilyMember) -> str:
    return "{} layers x {} heads".format(*member.scores.shape)


def as_csv(families: Sequence[FamilyMatrix]) -> str:
    """CSV with one line per pair, scope and measure."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for family in families:
        for row in _rows(family):
            writer.writerow({name: csv_value(value) for name, value in row.items()})
    return text.getvalue()


def as_json(families: Sequence[FamilyMatrix]) -> str:
    """JSON with the members' provenance, the settings and all correlations.

    Args:
        families: One for each geometry, all with the same settings.
    """
    members = [
        {
            "label": member.label,
            "family": member.family,
            "source": member.source,
            "sha256": member.scores.fingerprint,
            "layers": member.scores.shape[0],
            "heads": member.scores.shape[1],
            **{key: member.scores.metadata.get(key) for key in ("model", "task", "site", "kind")},
        }
        for family in families
        for member in family.members
    ]
    correlations = [row for family in families for row in _rows(family)]
    content = {"settings": families[0].settings, "members": members, "correlations": correlations}
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
