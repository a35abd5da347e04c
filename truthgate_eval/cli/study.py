"""`truthgate study`: gates of several kinds of scores on one model, at equal strength, in one table."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from truthgate_eval import __version__
from truthgate_eval.cli.console import console, print_line, progress_bar
from truthgate_eval.errors import TaskError, TruthGateError
from truthgate_eval.harness.lmms_eval.registry import MODELS
from truthgate_eval.limits import check_limit

if TYPE_CHECKING:
    from truthgate_eval.cli.study_jobs import Study
    from truthgate_eval.gating.scores import TruthScores

_KINDS = ("accuracy", "auroc", "gradient", "learned", "direct-effect", "copy")
_QUICK_LIMIT, _QUICK_KL = 150, "0.01"


def study(
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder; finished rows in it are kept.")],
    tasks: Annotated[str, typer.Option(help="Multiple-choice tasks, comma-separated.")],
    model: Annotated[str, typer.Option(help="hf, or vlm and its like for images.")] = "hf",
    model_args: Annotated[str, typer.Option("--model_args", "-a", help="As in the harness.")] = "",
    score: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A kind ({', '.join(_KINDS)}), or NAME=FILE for scores made elsewhere; repeat for several. "
            "Default: gradient and accuracy."
        ),
    ] = None,
    kl: Annotated[
        str, typer.Option(help="Strengths: divergences from the vanilla model, comma-separated, in nats.")
    ] = "0.005,0.02",
    select: Annotated[
        int, typer.Option(min=0, help="Heads that the action select amplifies, and weakens; 0: leave it out.")
    ] = 20,
    controls: Annotated[int, typer.Option(min=0, help="Shuffled and random gates of each kind.")] = 2,
    limit: Annotated[float | None, typer.Option(help="Documents per task, or a fraction below 1.")] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", "-b", min=1, help="Documents in a batch.")] = 8,
    device: Annotated[str | None, typer.Option(help="Such as cuda:0 or cpu.")] = None,
    seed: Annotated[int, typer.Option(help="Which documents make scores, and which evaluate them.")] = 42,
    seeds: Annotated[int, typer.Option(min=1, help="Fits of a learned gate.")] = 1,
    apply_chat_template: Annotated[bool, typer.Option("--apply_chat_template")] = False,
    site: Annotated[Literal["post", "pre"], typer.Option(help="Where the gates act.")] = "post",
    include_path: Annotated[str | None, typer.Option("--include_path", help="Your own tasks.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what the folder holds.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help=f"{_QUICK_LIMIT} documents, one strength: does it run?")
    ] = False,
) -> None:
    """Compare kinds of scores as gates of one model: equal strength, controls, fresh documents."""
    from truthgate_eval.attribution.study import StudyConfig, run_study
    from truthgate_eval.attribution.study_report import HEAD, save, table_rows
    from truthgate_eval.cli.study_jobs import load_lm_study, load_vlm_study
    from truthgate_eval.harness.model_args import parse_model_args

    if quick:
        limit, kl = limit or _QUICK_LIMIT, _QUICK_KL
    check_limit(limit, "--limit")
    kinds, files = _parse_scores(score or ["gradient", "accuracy"])
    config = StudyConfig(site, _parse_kl(kl), select, controls, controls, batch_size)
    output.mkdir(parents=True, exist_ok=True)
    if fresh:
        for file in [*output.glob("row-*.json"), *output.glob("scores-*.npz")]:
            file.unlink()
    arguments = parse_model_args(model_args)
    options = _data_options(tasks, limit, seed, apply_chat_template, arguments, include_path)
    own: dict[str, Any] = {"site": site, "seeds": seeds, "device": device, "batch_size": batch_size}
    if model == "vlm" or model in MODELS:
        loaded = load_vlm_study(model, arguments, options, image="document", **own)
    else:
        loaded = load_lm_study(model, arguments, options, **own)
    key = {
        "model": loaded.metadata["model"], "tasks": tasks, "limit": limit, "seed": seed, "seeds": seeds,
        "chat template": apply_chat_template, "model_args": model_args, "site": site,
        "model and images": loaded.fingerprint, "truthgate_eval": __version__,
    }  # fmt: skip
    sources = {**_make_scores(loaded, kinds, key, output), **files}
    per_action = sum(1 + controls for _ in sources) + controls
    total = 1 + per_action * (2 if select else 1) * len(config.targets)
    with progress_bar() as bars:
        rows = bars.add_task("gates", total=total)
        result = run_study(
            loaded.model, loaded.layout, sources, loaded.scoring, loaded.test, config=config,
            folder=output, key=key, progress=lambda done: bars.advance(rows, done),
        )  # fmt: skip
    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = [HEAD.index(name) for name in ("gate", "KL", "log-loss", "vs vanilla [95 %]", "AUROC")]
    for index in shown:
        table.add_column(HEAD[index], overflow="fold")
    cells = table_rows(result)
    for row in cells:
        table.add_row(*(row[index] for index in shown))
    console.print(table)
    for row in cells[1:]:
        print_line(f"{row[0]}, KL {row[1]}: {row[-1]}")
    for file in save(result, key, output):
        print_line(f"-> {file}")


def _make_scores(
    loaded: Study, kinds: list[str], key: dict[str, Any], folder: Path
) -> dict[str, TruthScores]:
    """Scores of each kind on the scoring documents, kept in the folder."""
    from truthgate_eval.gating.scores import TruthScores

    made: dict[str, TruthScores] = {}
    with progress_bar() as bars:
        for kind in kinds:
            file = folder / f"scores-{kind}.npz"
            if file.is_file():
                found = TruthScores.load(file)
                if found.metadata.get("study") == key:
                    made[kind] = found
                    continue
            bar = bars.add_task(kind, total=None)
            scores = loaded.make_scores(kind, partial(bars.advance, bar))
            scores.metadata["study"] = key
            scores.save(file)
            made[kind] = scores
    return made


def _parse_scores(given: list[str]) -> tuple[list[str], dict[str, TruthScores]]:
    """Kinds to make, and scores of files by name."""
    from truthgate_eval.analysis.named_path import split_named_path
    from truthgate_eval.gating.scores import TruthScores

    kinds: list[str] = []
    files: dict[str, TruthScores] = {}
    for text in given:
        if text in _KINDS:
            kinds.append(text)
            continue
        name, path = split_named_path(text, "a kind or NAME=FILE")
        if name is None and not Path(path).is_file():
            raise TaskError(f"--score {text}: expected one of {', '.join(_KINDS)}, or NAME=FILE")
        files[name or Path(path).stem] = TruthScores.resolve(path)
    return kinds, files


def _parse_kl(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise TruthGateError(f"--kl {text}: expected numbers such as 0.005,0.02") from None


def _data_options(
    tasks: str,
    limit: float | None,
    seed: int,
    apply_chat_template: bool,
    arguments: dict[str, Any],
    include_path: str | None,
) -> Any:
    from truthgate_eval.cli.probe_data import DataOptions

    return DataOptions(
        tasks=tuple(tasks.split(",")),
        limit=limit,
        seed=seed,
        num_fewshot=None,
        apply_chat_template=apply_chat_template,
        system_instruction=None,
        metadata=arguments,
        include_path=include_path,
        surface_matched=False,
    )
