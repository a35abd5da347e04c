"""`truthgate data`: original releases and one's own pictures made into data sets that tasks can load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from truthgate_eval.data.halueval import prepare_halueval
from truthgate_eval.data.phd import prepare_phd
from truthgate_eval.data.pope import prepare_pope
from truthgate_eval.errors import DataError
from truthgate_eval.paths import data_dir

if TYPE_CHECKING:
    from truthgate_eval.data.minimal_pairs import Rewriter
    from truthgate_eval.data.store import PreparedDataset

data_app = typer.Typer(
    help="Make data sets for tasks from original releases or from your own pictures.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
console = Console()

Out = Annotated[
    Path | None,
    typer.Option("--out", help="The data folder. Default: $TRUTHGATE_DATA, or a folder in the user's cache."),
]
Images = Annotated[
    list[Path], typer.Option("--images", help="A folder of pictures, at any depth; repeat for several.")
]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Leave questions about missing pictures out.")
]


class Kind(str, Enum):
    """Who rewrites."""

    none = "none"
    local = "local"
    endpoint = "endpoint"


@data_app.command()
def poll(
    images: Images,
    annotations: Annotated[
        Path, typer.Option(help="COCO instances JSON, or JSON lines of image and objects.")
    ],
    out: Out = None,
    per_picture: Annotated[int, typer.Option(min=1, help="Yes questions a picture, and as many no.")] = 3,
    min_objects: Annotated[
        int | None, typer.Option(min=1, help="Leave pictures with fewer objects out. Default: --per-picture.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many pictures.")] = None,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
    probe_share: Annotated[
        float, typer.Option(help="Share of the pictures to set aside for probing: task probe_poll.")
    ] = 0.0,
    allow_missing: AllowMissing = False,
) -> None:
    """Polls by POPE's sampling rule from annotated pictures: tasks `poll`, `poll_random`, ..."""
    from truthgate_eval.data.poll import prepare_poll

    with _working("looking for pictures"):
        prepared = prepare_poll(
            annotations,
            images,
            out or data_dir(),
            per_picture=per_picture,
            min_objects=min_objects,
            limit=limit,
            seed=seed,
            probe_share=probe_share,
            allow_missing=allow_missing,
        )
    _report(prepared, "lmms_eval --tasks poll")


@data_app.command()
def pope(
    questions: Annotated[Path, typer.Option(help="The folder with POPE's question files.")],
    images: Images,
    out: Out = None,
    source: Annotated[
        list[str] | None, typer.Option(help="coco, aokvqa or gqa; repeat for several. Default: all.")
    ] = None,
    allow_missing: AllowMissing = False,
) -> None:
    """POPE's nine question files: tasks `pope_all`, `pope_coco`, `pope_coco_random`, ..."""
    from truthgate_eval.metrics.pope import SOURCES

    with _working("looking for pictures"):
        prepared = prepare_pope(
            questions, images, out or data_dir(), sources=source or SOURCES, allow_missing=allow_missing
        )
    _report(prepared, f"lmms_eval --tasks {','.join(f'pope_{name}' for name in source or ['all'])}")


@data_app.command()
def phd(
    images: Images,
    json: Annotated[
        Path, typer.Option("--json", help="PhD's data.json, or the TruthProbe authors' JSON lines.")
    ],
    out: Out = None,
    allow_missing: AllowMissing = False,
) -> None:
    """PhD's questions, for probing with pictures and with text."""
    with _working("looking for pictures"):
        prepared = prepare_phd(json, images, out or data_dir(), allow_missing=allow_missing)
    _report(prepared, "truthgate probe --tasks probe_phd_image")


@data_app.command("rlhf-v")
def rlhf_v(
    parquet: Annotated[
        Path | None,
        typer.Option(help="The release's file, or the authors' JSON lines. Default: from the hub."),
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option("--images", help="With JSON lines: a folder of pictures.")
    ] = None,
    out: Out = None,
    allow_missing: AllowMissing = False,
) -> None:
    """RLHF-V's question-answering samples, for probing with pictures."""
    from truthgate_eval.data.rlhf_v import prepare_rlhf_v

    with _working("records") as step:
        prepared = prepare_rlhf_v(
            out or data_dir(),
            parquet=parquet,
            images=images or (),
            allow_missing=allow_missing,
            progress=step,
        )
    _report(prepared, "truthgate probe --tasks probe_rlhf_v")


@data_app.command()
def halueval(
    folder: Annotated[Path, typer.Argument(help="HaluEval's folder with qa_data.json and its like.")],
    out: Out = None,
) -> None:
    """HaluEval's files, checked and copied to where its tasks look for them."""
    _report(prepare_halueval(folder, out or data_dir()), "lm_eval --tasks halueval")


@data_app.command("minimal-pairs")
def minimal_pairs(
    source: Annotated[
        Path | None,
        typer.Option("--input", help="Prepared pairs, or JSON lines of question, chosen and rejected."),
    ] = None,
    rewriter: Annotated[
        Kind,
        typer.Option(help="none: filter only; local: transformers; endpoint: OpenAI-compatible."),
    ] = Kind.none,
    model: Annotated[str | None, typer.Option(help="The rewriter's name or path.")] = None,
    base_url: Annotated[
        str | None, typer.Option(help="The endpoint, such as http://localhost:8000/v1.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Of a local rewriter, such as cuda:0.")] = None,
    last_words: Annotated[int, typer.Option(min=1, help="How many words at the end may differ.")] = 2,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many pairs.")] = None,
    out: Out = None,
) -> None:
    """Pairs of answers that differ only in their last words, after rewriting the rejected ones."""
    from truthgate_eval.data.minimal_pairs import prepare_minimal_pairs

    folder = out or data_dir()
    with _working("rewritten") as step:
        prepared = prepare_minimal_pairs(
            source or folder / "rlhf_v" / "qa.parquet",
            folder,
            rewriter=_rewriter(rewriter, model, base_url, device),
            rewriter_name=model,
            last_words=last_words,
            limit=limit,
            progress=step,
        )
    _report(prepared)


def _rewriter(kind: Kind, model: str | None, base_url: str | None, device: str | None) -> Rewriter | None:
    from truthgate_eval.data.rewriters import endpoint_rewriter, local_rewriter

    if kind is Kind.none:
        if model is not None:
            raise DataError(f"--model {model} without --rewriter: expected --rewriter local or endpoint")
        return None
    if model is None:
        raise DataError(f"--rewriter {kind.value} needs --model")
    if kind is Kind.endpoint:
        return endpoint_rewriter(model, base_url=base_url)
    return local_rewriter(model, device=device)


@contextmanager
def _working(what: str) -> Iterator[Callable[[int], None]]:
    """A counter on stderr that goes away at the end, for what may take more than a few seconds."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda steps: bars.advance(task, steps)


def _report(prepared: PreparedDataset, use: str | None = None) -> None:
    from truthgate_eval.data.images import name_some
    from truthgate_eval.data.store import MISSING

    for name, rows in prepared.files.items():
        console.print(f"{prepared.folder.name}/{name}: {rows} rows", highlight=False)
    for note in prepared.notes:
        console.print(f"  {note}", highlight=False)
    if prepared.missing:
        console.print(
            f"  {len(prepared.missing)} pictures are missing: {name_some(prepared.missing)} "
            f"(all in {prepared.folder / MISSING})",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"in {prepared.folder}", highlight=False, soft_wrap=True)
    if use is not None:
        root = prepared.folder.parent.absolute()
        elsewhere = "" if root == data_dir().absolute() else f"TRUTHGATE_DATA={root} "
        console.print(f"use with: {elsewhere}{use}", highlight=False, soft_wrap=True)
