"""Leaderboards of the runs that `helpers.result_files` writes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from helpers import result_files
from truthgate_eval.analysis.leaderboard.table import Leaderboard, make_leaderboard
from truthgate_eval.analysis.runs.methods import make_entries
from truthgate_eval.analysis.runs.run import read_run

GOLDS = result_files.golds(40)
# Parsed answers of a bad run, which has 10 of 40 right, and of a good one, which has 35.
BAD, GOOD = result_files.answers(GOLDS, range(5, 35)), result_files.answers(GOLDS, range(15, 20))


def leaderboard(*runs: Path | tuple[str, Path], **options: Any) -> Leaderboard:
    """The leaderboard of some folders, each alone or with a name, with few resamples."""
    named = [run if isinstance(run, tuple) else (None, run) for run in runs]
    entries = make_entries([(name, read_run(path)) for name, path in named])
    return make_leaderboard(entries, **{"resamples": 500, **options})


def printed(*tables: RenderableType, width: int = 80) -> str:
    """What a terminal of some width shows of tables."""
    console = Console(width=width, file=io.StringIO())
    for table in tables:
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]
