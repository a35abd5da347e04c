"""`truthgate compare`: a leaderboard of runs, with statistics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from truthgate_eval.cli.console import console, print_line
from truthgate_eval.files import check_file, write_atomic


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Folders that lm_eval or lmms_eval wrote with --log_samples; NAME=RUN names one."
        ),
    ],
    baseline: Annotated[
        str | None, typer.Option(help="The run to compare with. Default: the vanilla one.")
    ] = None,
    correction: Annotated[str, typer.Option(help="holm, bonferroni, fdr_bh or none.")] = "holm",
    resamples: Annotated[int, typer.Option(min=100, help="Draws of the cluster bootstrap.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    published: Annotated[
        str, typer.Option(help="The paper's rows: auto (the evaluated model's), none, all, or a model.")
    ] = "auto",
    markdown: Annotated[Path | None, typer.Option(help="Also write Markdown into this .md file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write every figure into this .csv file.")] = None,
    latex: Annotated[
        Path | None, typer.Option(help="Also write booktabs tables into this .tex file.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write everything into this .json file.")
    ] = None,
) -> None:
    """Compare runs on the same documents: leaderboards, paired tests, intervals, the paper's figures."""
    for path, suffix in ((markdown, ".md"), (csv, ".csv"), (latex, ".tex"), (json_file, ".json")):
        if path is not None:
            check_file(path, suffix)
    # numpy and scipy take a second to import, and other commands do not need them.
    from truthgate_eval.analysis.leaderboard import formats
    from truthgate_eval.analysis.leaderboard.cells import footnote
    from truthgate_eval.analysis.leaderboard.table import make_leaderboard
    from truthgate_eval.analysis.leaderboard.terminal import terminal_tables
    from truthgate_eval.analysis.named_path import split_named_path
    from truthgate_eval.analysis.runs.methods import make_entries
    from truthgate_eval.analysis.runs.run import read_run

    named_paths = [split_named_path(text) for text in runs]
    entries = make_entries([(name, read_run(path)) for name, path in named_paths])
    leaderboard = make_leaderboard(
        entries,
        baseline=baseline,
        correction=correction,
        resamples=resamples,
        seed=seed,
        published=published,
    )
    for table in terminal_tables(leaderboard):
        console.print(table)
    for task in leaderboard.task_leaderboards:
        for one in task.log_odds:
            print_line(one.conclusion)
    print_line(footnote(leaderboard))
    for warning in leaderboard.warnings:
        print_line(f"warning: {warning}")
    contents = {
        markdown: formats.markdown,
        csv: formats.as_csv,
        latex: formats.latex,
        json_file: lambda made: json.dumps(made.as_dict(), indent=2) + "\n",
    }
    for path, make in contents.items():
        if path is not None:
            write_atomic(path, make(leaderboard).encode())
            print_line(f"-> {path}")
