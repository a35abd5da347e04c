"""`truthgate report`: runs and artifacts as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from truthgate_eval.cli.console import print_line
from truthgate_eval.files import check_file, write_atomic


def report(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_OR_ARTIFACT...",
            help="Runs (NAME=RUN) as for compare, artifacts (NAME=FILE, FAMILY/NAME=FILE) as for correlate.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .html file to write.")],
    baseline: Annotated[
        str | None, typer.Option(help="The run to compare with. Default: the vanilla one.")
    ] = None,
    published: Annotated[
        str, typer.Option(help="The paper's rows: auto (the evaluated model's), none, all, or a model.")
    ] = "auto",
    documents: Annotated[int, typer.Option(min=0, help="Most documents in the sample browser.")] = 5_000,
    thumbnails: Annotated[int, typer.Option(min=0, help="Most images in the page.")] = 200,
    images: Annotated[
        list[Path] | None, typer.Option(help="A folder of images that are not where a run had them.")
    ] = None,
    permutations: Annotated[
        int, typer.Option(min=1, help="Of heads, for the correlations' p-values.")
    ] = 9999,
    resamples: Annotated[int, typer.Option(min=100, help="Draws of the cluster bootstrap.")] = 10_000,
) -> None:
    """Write one HTML page of runs and artifacts that needs no network."""
    check_file(output, ".html", ".htm")
    from truthgate_eval.analysis.report.collect import ReportConfig, collect, read_inputs
    from truthgate_eval.analysis.report.page import render

    entries, members = read_inputs(inputs)
    config = ReportConfig(
        baseline=baseline,
        published=published,
        permutations=permutations,
        resamples=resamples,
        documents=documents,
        thumbnails=thumbnails,
        images=images or (),
    )
    content = collect(entries, members, config)
    page = render(content).encode("utf-8", "replace")
    write_atomic(output, page)
    counts = (
        f"{len(entries)} runs, {len(members)} artifacts, {len(content['samples']['documents'])} documents"
    )
    print_line(f"{counts}, {len(page) / 1e6:.1f} MB -> {output}")
