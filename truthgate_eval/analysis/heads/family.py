"""Several score artifacts side by side: are they comparable, what are they called, how do they correlate?

A family is a base model and the models that were tuned from it; the method claims that their
truthful heads are largely the same (METHOD.md, "Claim").
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
from rich import box
from rich.markup import escape
from rich.table import Table

from truthgate_eval.analysis.heads.correlation import (
    MEASURES,
    SCOPES,
    Array,
    Correlation,
    correlate,
    has_variance,
)
from truthgate_eval.errors import ScoresError
from truthgate_eval.gating.scores import TruthScores

_SUFFIXES = (".npz", ".npy", ".csv")
_COLUMNS = ("first", "second", "same_family", "scope", "measure", "r", "low", "high", "p", "p_holm")
_WHERE = {"all heads": "between heads", "within layers": "between the heads of any layer"}


@dataclass(frozen=True, eq=False)
class FamilyMember:
    """One artifact of a comparison.

    Attributes:
        label: What it is called in tables and plots; no two members share it.
        family: Its family, or None where neither the user nor the metadata says it.
        source: Where it was read from, as the user wrote it.
        scores: The artifact.
    """

    label: str
    family: str | None
    source: str
    scores: TruthScores


@dataclass(frozen=True, eq=False)
class FamilyMatrix:
    """Members, families together, and the correlations of every pair of them.

    Attributes:
        members: The artifacts.
        correlations: One per pair, scope and measure; `first` and `second` index `members`.
        settings: Permutations, confidence and seed.
    """

    members: list[FamilyMember]
    correlations: list[Correlation]
    settings: dict[str, float]

    def coefficients(self, measure: str, scope: str) -> Array:
        """The symmetric matrix [members, members] of one coefficient, with ones on the diagonal."""
        matrix = np.eye(len(self.members))
        for one in self.correlations:
            if (one.measure, one.scope) == (measure, scope):
                matrix[one.first, one.second] = matrix[one.second, one.first] = one.r
        return matrix

    def pair(self, measure: str, scope: str, first: int, second: int) -> Correlation:
        """The correlation of two different members, in either order."""
        wanted = (min(first, second), max(first, second), measure, scope)
        return next(c for c in self.correlations if (c.first, c.second, c.measure, c.scope) == wanted)

    def same_family(self, one: Correlation) -> bool | None:
        """Whether a pair is of one family; None where a family is not known."""
        first, second = self.members[one.first].family, self.members[one.second].family
        return None if first is None or second is None else first == second


def correlate_family(
    members: Sequence[FamilyMember], *, permutations: int = 9999, confidence: float = 0.95, seed: int = 0
) -> FamilyMatrix:
    """Correlate every pair of members; see `correlation.correlate` for the statistics.

    Raises:
        ScoresError: Fewer than two members, two of one label, other geometry than the first
            member's, or scores that do not differ between heads.
    """
    check_members(members)
    if not 0 < confidence < 1:
        raise ScoresError(f"confidence {confidence:g}: expected a number between 0 and 1, such as 0.95")
    families = list(dict.fromkeys(member.family for member in members))
    # Those of unknown family come last, so that they do not look like one.
    families.sort(key=lambda family: family is None)
    ordered = sorted(members, key=lambda member: families.index(member.family))
    settings = {"permutations": permutations, "confidence": confidence, "seed": seed}
    arrays = [member.scores.scores for member in ordered]
    found = correlate(arrays, permutations=permutations, confidence=confidence, seed=seed)
    return FamilyMatrix(ordered, found, settings)


def read_member(argument: str) -> FamilyMember:
    """Read `FILE`, `NAME=FILE` or `FAMILY/NAME=FILE`; FILE is all that `TruthScores.resolve` takes.

    Without a name the file's own is the label, without a family the metadata's `family`, if any.
    """
    label, equals, source = argument.partition("=")
    if not equals or argument.startswith("hf://") or Path(argument).is_file():
        label, source = "", argument
    elif not label or not source:
        raise ScoresError(f"{argument!r}: expected FILE, NAME=FILE or FAMILY/NAME=FILE")
    scores = TruthScores.resolve(source)
    family, _, name = label.rpartition("/")
    if not name:
        path = Path(source)
        name = path.stem if path.suffix.lower() in _SUFFIXES else path.name
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
    """One line that says at which sites the members were probed, where that is not one and the same."""
    sites = [(member.label, member.scores.metadata.get("site")) for member in members]
    if len({site for _, site in sites if site}) < 2:
        return None
    listed = ", ".join(f"{label} {site or 'unknown'}" for label, site in sites)
    return f"the artifacts were probed at different sites ({listed}): a head means another vector at each"


def _geometry(member: FamilyMember) -> str:
    return "{} layers x {} heads".format(*member.scores.shape)


def members_table(family: FamilyMatrix) -> Table:
    """What is compared: label, family, model, probing task, site, mean score."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("artifact", "family", "model", "task", "site"):
        table.add_column(column, overflow="fold")
    table.add_column("mean", justify="right")
    for member in family.members:
        meta = member.scores.metadata
        stated = (member.family, meta.get("model"), meta.get("task"), meta.get("site"))
        mean = f"{member.scores.scores.mean():.3f}"
        table.add_row(escape(member.label), *(escape(str(value or "-")) for value in stated), mean)
    return table


def matrix_table(family: FamilyMatrix, measure: str) -> Table:
    """The matrix: over all heads above the diagonal, within layers below it."""
    title = f"{measure.capitalize()}: over all heads above the diagonal, within layers below"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for number in range(len(family.members)):
        table.add_column(str(number + 1), justify="right")
    above, below = (family.coefficients(measure, scope) for scope in SCOPES)
    for row, member in enumerate(family.members):
        values = [*below[row, :row], None, *above[row, row + 1 :]]
        cells = ["" if value is None else f"{value:.3f}" for value in values]
        last = row + 1 < len(family.members) and family.members[row + 1].family != member.family
        table.add_row(escape(f"{row + 1} {member.label}"), *cells, end_section=last)
    return table


def pairs_table(family: FamilyMatrix) -> Table:
    """Every coefficient with its interval, its p-value and, with several pairs, Holm's."""
    several = len(family.members) > 2
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("pair", overflow="fold")
    for column in ("heads", "measure"):
        table.add_column(column, no_wrap=True)
    percent = f"{100 * family.settings['confidence']:g} % interval"
    for column in ("r", percent, "p", *(["Holm p"] if several else [])):
        table.add_column(column, justify="right", no_wrap=True)
    each = len(SCOPES) * len(MEASURES)
    for start in range(0, len(family.correlations), each):
        # One row of many lines a pair, so that a long label folds beside its numbers.
        lines = family.correlations[start : start + each]
        label = "\n".join(family.members[i].label for i in (lines[0].first, lines[0].second))
        cells = [
            [one.scope for one in lines],
            [one.measure.capitalize() for one in lines],
            [f"{one.r:.3f}" for one in lines],
            [_interval(one) for one in lines],
            [_p(one.p) for one in lines],
            *([[_p(one.p_holm) for one in lines]] if several else []),
        ]
        table.add_row(escape(label), *("\n".join(cell) for cell in cells), end_section=True)
    return table


def _interval(one: Correlation) -> str:
    return f"{one.low:.3f} to {one.high:.3f}" if math.isfinite(one.low) else "-"


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 1e-4 else f"{value:.0e}"


def as_csv(family: FamilyMatrix) -> str:
    """One line per pair, scope and measure."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_records(family))
    return text.getvalue()


def as_json(family: FamilyMatrix) -> str:
    """Members with their provenance, settings and all correlations, as JSON."""
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
    content = {"settings": family.settings, "members": members, "correlations": _records(family)}
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _records(family: FamilyMatrix) -> list[dict[str, Any]]:
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
