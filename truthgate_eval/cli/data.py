"""`truthgate data`: data sets for tasks, from original releases and from one's own images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from truthgate_eval.cli.console import PlainConsole, console
from truthgate_eval.data.halueval import prepare_halueval
from truthgate_eval.data.phd import prepare_phd
from truthgate_eval.data.pope import prepare_pope
from truthgate_eval.errors import DataError
from truthgate_eval.files import check_folder
from truthgate_eval.paths import data_dir

if TYPE_CHECKING:
    from truthgate_eval.data.minimal_pairs import Rewriter
    from truthgate_eval.data.store import PreparedDataset

data_app = typer.Typer(
    help="Make data sets for tasks from original releases or from your own images.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Out = Annotated[
    Path | None,
    typer.Option("--out", help="The data folder. Default: $TRUTHGATE_DATA, or a folder in the user's cache."),
]
Images = Annotated[
    list[Path],
    typer.Option("--images", help="A folder of images; subfolders count. Repeat for several folders."),
]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Leave out questions about missing images.")
]
RewriterKind = Literal["none", "local", "endpoint"]


@data_app.command()
def poll(
    images: Images,
    annotations: Annotated[
        Path, typer.Option(help="COCO instances JSON, or JSON lines of image and objects.")
    ],
    out: Out = None,
    per_image: Annotated[
        int,
        typer.Option("--per-picture", min=1, help="Yes questions for each image, and as many no questions."),
    ] = 3,
    min_objects: Annotated[
        int | None, typer.Option(min=1, help="Leave out images with fewer objects. Default: --per-picture.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many images.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of all random choices.")] = 0,
    probe_share: Annotated[
        float, typer.Option(help="Share of the images to set aside for probing: task probe_poll.")
    ] = 0.0,
    allow_missing: AllowMissing = False,
) -> None:
    """Questions about annotated images, by POPE's sampling rule: tasks `poll`, `poll_random`, ..."""
    from truthgate_eval.data.poll import prepare_poll

    with _progress("looking for images"):
        prepared = prepare_poll(
            annotations,
            images,
            check_folder(out or data_dir()),
            per_image=per_image,
            min_objects=min_objects,
            limit=limit,
            seed=seed,
            probe_share=probe_share,
            allow_missing=allow_missing,
        )
    _report(prepared, "lmms_eval --tasks poll")


Limit = Annotated[int | None, typer.Option(min=1, help="At most this many images.")]
Seed = Annotated[int, typer.Option(help="Seed of the images that --limit chooses.")]


@data_app.command()
def chair(
    images: Images,
    annotations: Annotated[Path, typer.Option(help="COCO's instances JSON, such as instances_val2014.json.")],
    synonyms: Annotated[Path, typer.Option(help="CHAIR's synonyms.txt: a line of names for each object.")],
    captions: Annotated[
        Path | None,
        typer.Option(help="COCO's captions JSON: what they mention counts as on the image, as published."),
    ] = None,
    out: Out = None,
    limit: Limit = None,
    seed: Seed = 0,
    allow_missing: AllowMissing = False,
) -> None:
    """CHAIR on COCO, objects that captions make up: task `chair`."""
    from truthgate_eval.data.chair import prepare_chair

    with _progress("looking for images"):
        prepared = prepare_chair(
            annotations,
            images,
            check_folder(out or data_dir()),
            synonyms=synonyms,
            captions=captions,
            limit=limit,
            seed=seed,
            allow_missing=allow_missing,
        )
    _report(prepared, "lmms_eval --tasks chair")


@data_app.command("chair-poll")
def chair_poll(
    images: Images,
    annotations: Annotated[
        Path, typer.Option(help="COCO instances JSON, or JSON lines of image and objects.")
    ],
    synonyms: Annotated[
        Path | None, typer.Option(help="More names of the objects: a line for each, the object first.")
    ] = None,
    out: Out = None,
    limit: Limit = None,
    seed: Seed = 0,
    allow_missing: AllowMissing = False,
) -> None:
    """CHAIR on annotated images of your own: task `chair_poll`."""
    from truthgate_eval.data.chair import prepare_chair_poll

    with _progress("looking for images"):
        prepared = prepare_chair_poll(
            annotations,
            images,
            check_folder(out or data_dir()),
            synonyms=synonyms,
            limit=limit,
            seed=seed,
            allow_missing=allow_missing,
        )
    _report(prepared, "lmms_eval --tasks chair_poll")


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

    folder = check_folder(out or data_dir())
    with _progress("looking for images"):
        prepared = prepare_pope(
            questions, images, folder, sources=source or SOURCES, allow_missing=allow_missing
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
    """PhD's questions, for probing with images and with text."""
    with _progress("looking for images"):
        prepared = prepare_phd(json, images, check_folder(out or data_dir()), allow_missing=allow_missing)
    _report(prepared, "truthgate probe --tasks probe_phd_image")


@data_app.command("rlhf-v")
def rlhf_v(
    parquet: Annotated[
        Path | None,
        typer.Option(help="The release's file, or the authors' JSON lines. Default: from the hub."),
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option("--images", help="With JSON lines: a folder of images.")
    ] = None,
    out: Out = None,
    allow_missing: AllowMissing = False,
) -> None:
    """RLHF-V's question-answering samples, for probing with images."""
    from truthgate_eval.data.rlhf_v import prepare_rlhf_v

    with _progress("records") as step:
        prepared = prepare_rlhf_v(
            check_folder(out or data_dir()),
            parquet=parquet,
            images=images or (),
            allow_missing=allow_missing,
            progress=step,
        )
    _report(prepared, "truthgate probe --tasks probe_rlhf_v")


@data_app.command()
def halueval(
    folder: Annotated[Path, typer.Argument(help="HaluEval's folder, with qa_data.json and the others.")],
    out: Out = None,
) -> None:
    """HaluEval's files, checked and copied into the data folder."""
    _report(prepare_halueval(folder, check_folder(out or data_dir())), "lm_eval --tasks halueval")


@data_app.command("minimal-pairs")
def minimal_pairs(
    source: Annotated[
        Path | None,
        typer.Option("--input", help="Prepared pairs, or JSON lines of question, chosen and rejected."),
    ] = None,
    rewriter: Annotated[
        RewriterKind,
        typer.Option(help="none: filter only; local: transformers; endpoint: OpenAI-compatible."),
    ] = "none",
    model: Annotated[str | None, typer.Option(help="The rewriter's name or path.")] = None,
    base_url: Annotated[
        str | None, typer.Option(help="The endpoint, such as http://localhost:8000/v1.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Device of a local rewriter, such as cuda:0.")] = None,
    last_words: Annotated[int, typer.Option(min=1, help="How many words at the end may differ.")] = 2,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many pairs.")] = None,
    out: Out = None,
) -> None:
    """Pairs of answers that differ only in their last words, after rewriting the rejected ones."""
    from truthgate_eval.data.minimal_pairs import prepare_minimal_pairs

    folder = check_folder(out or data_dir())
    with _progress("rewritten") as step:
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


def _rewriter(
    rewriter: RewriterKind, model: str | None, base_url: str | None, device: str | None
) -> Rewriter | None:
    from truthgate_eval.data.rewriters import endpoint_rewriter, local_rewriter

    if rewriter == "none":
        if model is not None:
            raise DataError(f"--model {model} without --rewriter: expected --rewriter local or endpoint")
        return None
    if model is None:
        raise DataError(f"--rewriter {rewriter} needs --model")
    if rewriter == "endpoint":
        return endpoint_rewriter(model, base_url=base_url)
    return local_rewriter(model, device=device)


@contextmanager
def _progress(description: str) -> Iterator[Callable[[int], None]]:
    """A transient progress counter on stderr; yields a function that adds to it."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=PlainConsole(stderr=True, markup=False), transient=True) as progress:
        task = progress.add_task(description, total=None)
        yield lambda steps: progress.advance(task, steps)


def _report(prepared: PreparedDataset, use: str | None = None) -> None:
    from truthgate_eval.data.images import shorten_names
    from truthgate_eval.data.store import MISSING_FILE

    for name, rows in prepared.files.items():
        console.print(f"{prepared.folder.name}/{name}: {rows} rows", highlight=False)
    for note in prepared.notes:
        console.print(f"  {note}", highlight=False)
    if prepared.missing:
        console.print(
            f"  {len(prepared.missing)} images are missing: {shorten_names(prepared.missing)} "
            f"(all in {prepared.folder / MISSING_FILE})",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"in {prepared.folder}", highlight=False, soft_wrap=True)
    if use is not None:
        root = prepared.folder.parent.absolute()
        elsewhere = "" if root == data_dir().absolute() else f"TRUTHGATE_DATA={root} "
        console.print(f"use with: {elsewhere}{use}", highlight=False, soft_wrap=True)
