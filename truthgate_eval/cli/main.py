"""`truthgate`: the program, its error line, and the commands that have no module of their own."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from truthgate_eval import __version__
from truthgate_eval.cli.compare import compare
from truthgate_eval.cli.console import console, exit_on_termination, print_line, set_up_logging
from truthgate_eval.cli.correlate import correlate
from truthgate_eval.cli.data import data_app
from truthgate_eval.cli.export import export
from truthgate_eval.cli.probe import probe
from truthgate_eval.cli.push import push
from truthgate_eval.cli.report import report
from truthgate_eval.cli.study import study
from truthgate_eval.cli.sweep import sweep
from truthgate_eval.errors import ProcessError, TruthGateError, one_line
from truthgate_eval.escaping import visible
from truthgate_eval.files import write_error
from truthgate_eval.processes import check_one_process, launched

if TYPE_CHECKING:
    import numpy as np

    from truthgate_eval.gating.scores import TruthScores

app = typer.Typer(
    help="Find the attention heads that tell truth from hallucination, and gate them.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data_app, name="data")
app.command()(compare)
app.command()(correlate)
app.command()(export)
app.command()(probe)
app.command()(push)
app.command()(report)
app.command()(study)
app.command()(sweep)


# The status of shells for Ctrl-C, with which typer ends an interrupted command, without a word.
_INTERRUPTED = 130


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit status 1, Ctrl-C one and 130."""
    try:
        with exit_on_termination():
            app()
    except TruthGateError as error:
        if launched().is_main or not isinstance(error, ProcessError):  # which all processes have
            sys.stderr.write(f"error: {one_line(error)}\n")
        sys.exit(1)
    except KeyboardInterrupt:  # before or after typer
        _say_aborted()
        sys.exit(_INTERRUPTED)
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:
            _say_aborted()
        raise
    except Exception as error:
        reason = write_error(error)
        if reason is None:
            raise
        file = getattr(error, "filename", None) or "a file"
        sys.stderr.write(f"error: {visible(str(file))} cannot be written: {reason}\n")
        sys.exit(1)


def _say_aborted() -> None:
    sys.stderr.write("Aborted!\n")


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"truthgate_eval {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also print what the libraries in use log.")
    ] = False,
    version: Annotated[  # noqa: ARG001 (its callback prints)
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    set_up_logging(context, verbose=verbose)
    if context.invoked_subcommand != "probe":
        check_one_process(f"truthgate {context.invoked_subcommand}")


@app.command()
def show(
    scores: Annotated[str, typer.Argument(help="A score file, or the name of a shipped artifact.")],
    top: Annotated[int, typer.Option(min=1, help="How many heads to list.")] = 10,
    plot: Annotated[Path | None, typer.Option(help="Also draw the heat map into this file.")] = None,
) -> None:
    """Show an artifact: where it comes from, its best heads, and a heat map."""
    from rich.table import Table
    from rich.text import Text

    from truthgate_eval.analysis.heads.control_report import print_controls
    from truthgate_eval.analysis.heads.heat_map import save_heat_map, terminal_heat_map, top_heads
    from truthgate_eval.cli.artifact_lines import warnings_of
    from truthgate_eval.files import check_writable
    from truthgate_eval.gating.scores import TruthScores

    if plot is not None:
        check_writable(plot)
    artifact = TruthScores.resolve(scores)
    summary = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _summary(artifact):
        summary.add_row(Text(name, style="dim"), Text(value))
    console.print(summary)
    console.print()
    console.print(top_heads(artifact, min(top, artifact.scores.size)))
    console.print()
    console.print(terminal_heat_map(artifact, colour=console.color_system is not None))
    print_controls(artifact, console)
    for line in warnings_of(artifact):
        print_line(line)
    if plot is not None:
        save_heat_map(artifact, plot)
        print_line(f"heat map -> {plot}")


def _summary(artifact: TruthScores) -> list[tuple[str, str]]:
    """An artifact's most important metadata, as (name, text) pairs."""
    from truthgate_eval.analysis.formatting import score_decimals
    from truthgate_eval.analysis.heads.reliability import describe_reliability
    from truthgate_eval.cli.artifact_lines import describe_format, describe_own_answers

    digits = score_decimals(float(abs(artifact.scores).max()))
    meta = artifact.metadata
    probe = meta.get("probe", {})
    pairs = [
        ("model", artifact.model),
        ("heads", f"{artifact.shape[0]} layers x {artifact.shape[1]} heads"),
        ("task", meta.get("task")),
        ("site", meta.get("site")),
        ("sequences", meta.get("sequences") and f"{meta['sequences']} of {meta.get('documents')} documents"),
        ("probe", probe and f"{probe.get('solver')}, {probe.get('folds')} folds by {probe.get('split')}"),
        ("format", describe_format(meta)),
        ("answers", meta.get("surface_matched") and "of equal length, without final punctuation"),
        ("own answers", describe_own_answers(meta)),
        ("score", meta.get("score")),
        ("imported from", meta.get("imported_from")),
        ("note", meta.get("note")),
        ("mean score", f"{artifact.scores.mean():.{digits}f}"),
        ("mean stderr", None if artifact.stderr is None else f"{artifact.stderr.mean():.{digits}f}"),
        ("reliability", describe_reliability(artifact)),
        ("seeds", None if artifact.seed_scores is None else _seed_deviation(artifact.seed_scores, digits)),
        ("sha256", artifact.fingerprint[:16]),
        ("created", meta.get("created")),
        ("from the hub", _hub_file(meta)),
    ]
    if recommended := meta.get("recommended"):
        chosen = ", ".join(
            f"{key}={recommended[key]}" for key in ("lam", "norm", "site") if key in recommended
        )
        conditions = "".join(f", {key}={value}" for key, value in recommended.get("conditions", {}).items())
        task = recommended.get("task", "unknown data")
        pairs.append(("recommended", f"{chosen} (chosen on {task}{conditions})"))
    return [(name, str(value)) for name, value in pairs if value]


def _hub_file(metadata: dict[str, Any]) -> str | None:
    """The file on the hub that an artifact is or was made from, with its commit."""
    from truthgate_eval.gating.hub_scores import recorded_origin

    origin = recorded_origin(metadata).get("hub", {})
    return ", ".join(f"{name} {value}" for name, value in origin.items()) or None


def _seed_deviation(seed_scores: np.ndarray[Any, Any], digits: int) -> str:
    """The number of seeds, and the deviation between them, which is a mean over all heads."""
    deviation = seed_scores.std(axis=0, ddof=1).mean()
    return f"{len(seed_scores)}; standard deviation of a head's score {deviation:.{digits}f}"


@app.command("import")
def import_scores(
    file: Annotated[
        str,
        typer.Argument(
            help="A .npy, a cv5_head_metrics.csv, a head map, an exported adapter's folder, or hf://..."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .npz to write.")],
    model: Annotated[
        str | None, typer.Option(help="Hub id of the model that was probed; an exported adapter says it.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="What it was probed on, such as 'HaluEval-QA, 292'; likewise.")
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(help="Where it was probed: pre (default) for the released code; an adapter says it."),
    ] = None,
    note: Annotated[str | None, typer.Option(help="Anything else a reader should know.")] = None,
    lam: Annotated[float | None, typer.Option(help="The recommended lam, if there is one.")] = None,
    norm: Annotated[str | None, typer.Option(help="The recommended norm, needed with --lam.")] = None,
    gate_site: Annotated[str, typer.Option("--gate_site", help="Where --lam and --norm gate.")] = "post",
    shape: Annotated[
        str | None, typer.Option(help="Layers x heads of the model, such as 32x32, for a list of heads.")
    ] = None,
) -> None:
    """Make a full artifact of published scores, with the provenance that you state, or of an adapter."""
    from truthgate_eval.errors import GateError
    from truthgate_eval.gating.attention_layout import check_site
    from truthgate_eval.gating.gate import make_gate
    from truthgate_eval.gating.head_maps import parse_shape
    from truthgate_eval.gating.normalization import check_norm
    from truthgate_eval.gating.scores import TruthScores, check_output
    from truthgate_eval.hub import is_hub_address

    check_output(output)
    is_there = output.exists()
    if site is not None:
        check_site(site)
    read = TruthScores.resolve if is_hub_address(file) else TruthScores.load
    source = read(file, shape=None if shape is None else parse_shape(shape))
    metadata = _stated_metadata(source, {"model": model, "task": task, "site": site})
    if note:
        metadata["note"] = note
    if (lam is None) != (norm is None):
        raise GateError("a recommendation needs both: give --lam and --norm, or neither")
    if lam is not None and norm is not None:
        # Raises on settings that no gate could use later.
        make_gate(source, lam=lam, norm=check_norm(norm), site=check_site(gate_site))
        metadata["recommended"] = {"lam": lam, "norm": norm, "site": gate_site, "task": "stated by the user"}
    replace(source, metadata=metadata).save(output)
    replaced = ", which replaces the artifact that was there" if is_there else ""
    print_line(f"{source.shape[0]} x {source.shape[1]} scores of {metadata['model']} -> {output}{replaced}")


def _stated_metadata(source: TruthScores, stated: dict[str, str | None]) -> dict[str, Any]:
    """The metadata of imported scores: what the user states, else what the source says of itself.

    Raises:
        ScoresError: Nobody says which model was probed, or on what.
    """
    from truthgate_eval.errors import ScoresError

    given = {name: value for name, value in stated.items() if value is not None}
    metadata: dict[str, Any] = {"site": "pre", **source.metadata, **given}
    is_gate = source.metadata.get("kind") == "gate"
    for name in ("model", "task"):
        if name not in metadata and not (is_gate and name == "task"):  # a random gate was made on no task
            raise ScoresError(f"the file does not say it: give --{name}")
    metadata |= {"layers": source.shape[0], "heads": source.shape[1]}
    return {**metadata, "probed_by": "stated by the user"} if given else metadata


@app.command()
def demo(
    folder: Annotated[Path | None, typer.Option(help="Keep the results here.")] = None,
    documents: Annotated[int, typer.Option(min=10, help="Documents to probe on.")] = 100,
    limit: Annotated[int, typer.Option(min=1, help="Documents of a task to evaluate.")] = 50,
) -> None:
    """Probe and gate the packaged models, base and vision child, on HaluEval and on scenes."""
    from truthgate_eval.cli.demo import run_demo

    run_demo(console, folder, documents=documents, limit=limit)


@app.command()
def doctor() -> None:
    """Check the installation: versions, registrations, and where data and models are found."""
    from truthgate_eval.cli.doctor import run_checks

    table, healthy = run_checks()
    console.print(table)
    if not healthy:
        raise typer.Exit(1)
