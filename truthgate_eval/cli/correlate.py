"""`truthgate correlate`: how far several models' truthful heads are the same."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from truthgate_eval.cli.console import console, print_line
from truthgate_eval.escaping import terminal_text

if TYPE_CHECKING:
    from truthgate_eval.analysis.heads.correlation import Scope
    from truthgate_eval.analysis.heads.family import FamilyMatrix


class Measure(str, Enum):
    """What the matrix shows."""

    pearson = "pearson"
    spearman = "spearman"


class Heads(str, Enum):
    """Which coefficients are printed."""

    both = "both"
    all_heads = "all-heads"
    within_layers = "within-layers"


def correlate(
    scores: Annotated[
        list[str],
        typer.Argument(
            help="Two artifacts or more: files, shipped names, published arrays and head maps "
            "(.npy, .csv, .jsonl, .json); NAME=FILE or FAMILY/NAME=FILE names them."
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
    heads: Annotated[
        Heads, typer.Option(help="Print one scope only; the matrix then shows both measures.")
    ] = Heads.both,
    shape: Annotated[
        str | None, typer.Option(help="Layers x heads of the models of lists of heads, such as 32x32.")
    ] = None,
    permutations: Annotated[int, typer.Option(min=1, help="Of heads, for the p-values.")] = 9999,
    confidence: Annotated[float, typer.Option(help="Coverage of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the permutations.")] = 0,
) -> None:
    """Correlate the truth scores of models head by head, over all heads and within layers."""
    from truthgate_eval.analysis.heads import family as family_module
    from truthgate_eval.analysis.heads import family_plots as plots
    from truthgate_eval.errors import TruthGateError
    from truthgate_eval.files import check_file, write_atomic
    from truthgate_eval.gating.head_maps import parse_shape

    for path, suffixes in (
        (csv, (".csv",)),
        (json, (".json",)),
        *((path, plots.PLOT_SUFFIXES) for path in (plot, scatter, heat_maps)),
    ):
        if path is not None:
            check_file(path, *suffixes)
    if scatter is not None:
        plots.check_two(len(scores))
    list_shape = None if shape is None else parse_shape(shape)
    members = [family_module.read_member(argument, list_shape=list_shape) for argument in scores]
    groups, alone = family_module.split_by_geometry(members)
    if len(groups) > 1 and (plot or heat_maps):
        raise TruthGateError(
            f"a plot shows artifacts of one geometry, and these have {len(groups)}: "
            "leave --plot and --heat-maps out, or correlate each geometry by itself"
        )
    families = [
        family_module.correlate_family(group, permutations=permutations, confidence=confidence, seed=seed)
        for group in groups
    ]
    warnings = [family_module.left_out_pairs(groups, alone), *family_module.tied_scores(members)]
    warnings += [family_module.different_settings(group) for group in groups]
    for warning in filter(None, warnings):
        sys.stderr.write(f"warning: {terminal_text(warning)}\n")
    for family in families:
        if len(families) > 1:
            print_line("{} layers x {} heads\n".format(*family.members[0].scores.shape))
        _print_tables(family, measure, heads)
    for path, text in ((csv, family_module.as_csv), (json, family_module.as_json)):
        if path is not None:
            write_atomic(path, text(families).encode())
            print_line(f"-> {path}")
    for path, draw in (
        (plot, lambda: plots.matrix_figure(families[0], measure.value)),
        (scatter, lambda: plots.scatter_figure(families[0])),
        (heat_maps, lambda: plots.heat_maps_figure(families[0])),
    ):
        if path is not None:
            plots.save_figure(draw(), path)
            print_line(f"-> {path}")


def _print_tables(family: FamilyMatrix, measure: Measure, heads: Heads) -> None:
    from truthgate_eval.analysis.heads.family_tables import matrix_tables, members_table, pairs_table

    scopes: dict[Heads, Scope] = {Heads.all_heads: "all heads", Heads.within_layers: "within layers"}
    scope = scopes.get(heads)
    console.print(members_table(family))
    if len(family.members) > 2:
        for table in matrix_tables(family, measure.value, scope):
            console.print(table)
    console.print(pairs_table(family, scope))
