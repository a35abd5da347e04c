"""`truthgate correlate`: how far several models' truthful heads are the same."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from truthgate_eval.cli.console import console, print_line


class Measure(str, Enum):
    """What the matrix shows."""

    pearson = "pearson"
    spearman = "spearman"


def correlate(
    scores: Annotated[
        list[str],
        typer.Argument(
            help="Two artifacts or more: files, shipped names, published .npy or .csv; "
            "NAME=FILE or FAMILY/NAME=FILE names them."
        ),
    ],
    csv: Annotated[Path | None, typer.Option("--csv", help="Write all pairs into this file.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="The same, with provenance.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the matrix (.png, .svg or .pdf).")] = None,
    scatter: Annotated[Path | None, typer.Option(help="Draw two artifacts head by head.")] = None,
    heat_maps: Annotated[
        Path | None, typer.Option("--heat-maps", "--heat_maps", help="Draw all heat maps side by side.")
    ] = None,
    measure: Annotated[Measure, typer.Option(help="What the matrix shows.")] = Measure.pearson,
    permutations: Annotated[int, typer.Option(min=1, help="Of heads, for the p-values.")] = 9999,
    confidence: Annotated[float, typer.Option(help="Coverage of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the permutations.")] = 0,
) -> None:
    """Correlate the truth scores of models head by head, over all heads and within layers."""
    from truthgate_eval.analysis.heads import family_plots as plots
    from truthgate_eval.analysis.heads.family import (
        as_csv,
        as_json,
        correlate_family,
        different_settings,
        read_member,
    )
    from truthgate_eval.analysis.heads.family_tables import matrix_tables, members_table, pairs_table
    from truthgate_eval.files import check_file, write_atomic

    for path, suffixes in (
        (csv, (".csv",)),
        (json, (".json",)),
        *((path, plots.PLOT_SUFFIXES) for path in (plot, scatter, heat_maps)),
    ):
        if path is not None:
            check_file(path, *suffixes)
    if scatter is not None:
        plots.check_two(len(scores))
    members = [read_member(argument) for argument in scores]
    family = correlate_family(members, permutations=permutations, confidence=confidence, seed=seed)
    if warning := different_settings(members):
        sys.stderr.write(f"warning: {warning}\n")
    console.print(members_table(family))
    if len(members) > 2:
        for table in matrix_tables(family, measure.value):
            console.print(table)
    console.print(pairs_table(family))
    for path, text in ((csv, as_csv), (json, as_json)):
        if path is not None:
            write_atomic(path, text(family).encode())
            print_line(f"-> {path}")
    for path, draw in (
        (plot, lambda: plots.matrix_figure(family, measure.value)),
        (scatter, lambda: plots.scatter_figure(family)),
        (heat_maps, lambda: plots.heat_maps_figure(family)),
    ):
        if path is not None:
            plots.save_figure(draw(), path)
            print_line(f"-> {path}")
