"""The content of a report as one dict that can be written as JSON; `report.page` makes a page of it.

Runs and score artifacts are read as `truthgate compare` and `truthgate correlate` read them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truthgate_eval import __version__
from truthgate_eval.analysis.heads.family import SCORE_SUFFIXES, FamilyMember, read_member
from truthgate_eval.analysis.leaderboard.cells import footnote
from truthgate_eval.analysis.leaderboard.table import Leaderboard, make_leaderboard
from truthgate_eval.analysis.named_path import split_named_path
from truthgate_eval.analysis.report.artifacts import collect_artifact, collect_families
from truthgate_eval.analysis.report.provenance import provenance
from truthgate_eval.analysis.report.samples import collect_samples
from truthgate_eval.analysis.runs.methods import RunEntry, choose_baseline, make_entries
from truthgate_eval.analysis.runs.run import read_run
from truthgate_eval.data.images import ImageFolders
from truthgate_eval.errors import TruthGateError
from truthgate_eval.gating.head_maps import is_head_list, read_head_map
from truthgate_eval.gating.ia3_adapter import is_adapter
from truthgate_eval.gating.scores import TruthScores

SCHEMA_VERSION = 1


class ReportError(TruthGateError):
    """There is nothing to report on, or an argument is neither a run nor an artifact."""


@dataclass(frozen=True)
class ReportConfig:
    """Options of a report.

    Attributes:
        baseline: The run that others are compared with; by default the vanilla one.
        published: Which of the paper's rows to show, see `published.published_rows`.
        permutations: Of heads, for the p-values of the correlations.
        resamples: Draws of the cluster bootstrap.
        documents: How many documents the sample browser has at most.
        thumbnails: How many images are embedded at most.
        images: Folders to look for images in that are not where the run had them.
    """

    baseline: str | None = None
    published: str = "auto"
    permutations: int = 9999
    resamples: int = 10_000
    documents: int = 5_000
    thumbnails: int = 200
    images: Sequence[Path] = ()


def read_inputs(arguments: Sequence[str]) -> tuple[list[RunEntry], list[FamilyMember]]:
    """Tell runs from artifacts, and read them.

    Args:
        arguments: Folders or results files of either harness (`NAME=RUN`), and score artifacts
            (`NAME=FILE`, `FAMILY/NAME=FILE`), in any order.

    Returns:
        The runs and the artifacts, in the order given.

    Raises:
        ReportError: An argument is neither, there is none, or two artifacts have one name.
        TruthGateError: A run or an artifact cannot be read.
    """
    runs: list[tuple[str | None, str]] = []
    members: list[FamilyMember] = []
    for argument in arguments:
        name, path = split_named_path(argument)
        is_run = os.path.isdir(path) or Path(path).suffix == ".json"  # head maps can be .json, too
        if is_run and not is_adapter(Path(path)) and not _is_head_map(Path(path)):
            runs.append((name, path))
        elif is_run or _is_score_source(path):
            members.append(read_member(argument))
        else:
            raise ReportError(
                f"{argument} is neither a run nor an artifact: expected what lm_eval or lmms_eval wrote, "
                f"a file {', '.join(SCORE_SUFFIXES)}, or the name of a shipped artifact"
            )
    if not runs and not members:
        raise ReportError("nothing to report on: give one run or one artifact at least")
    label, times = Counter(member.label for member in members).most_common(1)[0] if members else ("", 1)
    if times > 1:
        raise ReportError(f"{times} artifacts are called {label!r}: tell them apart with NAME=FILE")
    return make_entries([(name, read_run(path)) for name, path in runs]), members


def _is_head_map(path: Path) -> bool:
    """Whether a `.json` file holds a published head map, or a list of heads, and no run."""
    if not os.path.isfile(path):
        return False
    try:
        return is_head_list(path) or bool(read_head_map(path))
    except TruthGateError:
        return False


def _is_score_source(path: str) -> bool:
    """Whether a path means a score artifact; a file with its suffix need not exist."""
    if path.startswith("hf://") or Path(path).suffix.lower() in SCORE_SUFFIXES:
        return True
    try:
        TruthScores.resolve(path)
    except TruthGateError:
        return False
    return True


def collect(
    entries: Sequence[RunEntry], members: Sequence[FamilyMember], config: ReportConfig
) -> dict[str, Any]:
    """The content of a report, JSON-serialisable and the same for the same inputs.

    Args:
        entries: Runs; those with a task in common are in one leaderboard.
        members: Score artifacts; those of one geometry are correlated.
        config: Options.

    Raises:
        TruthGateError: Runs of one task have different documents, none of several is vanilla
            and no baseline is named, or an option does not exist.
    """
    leaderboards = _leaderboards(entries, config)
    # The baseline first: the sample browser starts with the first two runs.
    entries = [entry for leaderboard in leaderboards for entry in leaderboard.entries]
    families, notes = collect_families(members, permutations=config.permutations)
    return {
        "schema": SCHEMA_VERSION,
        "truthgate_eval": __version__,
        "leaderboards": [{**one.as_dict(), "footnote": footnote(one)} for one in leaderboards],
        "artifacts": [collect_artifact(member) for member in members],
        "families": families,
        "family_notes": notes,
        "samples": collect_samples(
            entries,
            documents=config.documents,
            thumbnails=config.thumbnails,
            folders=ImageFolders(config.images),
        ),
        "runs": [provenance(entry) for entry in entries],
    }


def _leaderboards(entries: Sequence[RunEntry], config: ReportConfig) -> list[Leaderboard]:
    """One leaderboard for each group of runs that have tasks in common."""
    chosen = choose_baseline(entries, config.baseline)[0] if config.baseline is not None and entries else None
    leaderboards = []
    for group in group_runs(entries):
        # `make_leaderboard` leaves the baseline out of the runs to compare: a run alone gets one row.
        alone = group[0] if len(group) == 1 else None
        base = alone or (chosen if chosen in group else None)
        leaderboards.append(
            make_leaderboard(
                [alone, alone] if alone else group,
                baseline=base.name if base else None,
                published=config.published,
                resamples=config.resamples,
            )
        )
    return leaderboards


def group_runs(entries: Sequence[RunEntry]) -> list[list[RunEntry]]:
    """Runs that have tasks in common, directly or through another run, in the order given."""
    groups: list[list[RunEntry]] = []
    for entry in entries:
        near = [group for group in groups if any(set(one.run.tasks) & set(entry.run.tasks) for one in group)]
        merged = [*(one for group in near for one in group), entry]
        index = groups.index(near[0]) if near else len(groups)
        groups = [group for group in groups if group not in near]
        groups.insert(index, merged)
    return groups
