"""`truthgate study`: gates of several kinds of scores on some models, at equal strength, in one table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from truthgate_eval import __version__
from truthgate_eval.cli.console import console, print_line, progress_bar
from truthgate_eval.errors import TaskError, TruthGateError, check_choice
from truthgate_eval.limits import check_limit

if TYPE_CHECKING:
    from truthgate_eval.attribution.study import StudyResult
    from truthgate_eval.attribution.study_gates import StudyGates
    from truthgate_eval.attribution.study_scores import ScoreMaker
    from truthgate_eval.cli.probe_data import DataOptions
    from truthgate_eval.cli.study_jobs import StudyModel
    from truthgate_eval.gating.scores import TruthScores

_KINDS = (
    "accuracy", "auroc", "context-gain", "gradient", "learned", "divergence", "direct-effect", "copy",
)  # fmt: skip
_QUICK_LIMIT, _QUICK_KL = 150, "0.01"


@dataclass(frozen=True)
class _Settings:
    """What every model of a study has in common."""

    options: DataOptions
    gates: StudyGates
    targets: tuple[float, ...]
    seeds: int
    batch_size: int
    device: str | None
    folder: Path

    def load(self, model: str, arguments: dict[str, Any], tasks: str) -> StudyModel:
        """A model with the answers of some tasks, which get its arguments as well, as in the harnesses."""
        import dataclasses

        from truthgate_eval.cli.study_jobs import load_study_model

        options = dataclasses.replace(
            self.options, tasks=tuple(tasks.split(",")), metadata={**arguments, **self.options.metadata}
        )
        return load_study_model(
            model, arguments, options, site=self.gates.site, device=self.device, batch_size=self.batch_size
        )

    @property
    def key(self) -> dict[str, Any]:
        """What a finished row depends on, beside the model and its documents."""
        options = self.options
        return {
            "tasks": ",".join(options.tasks), "limit": options.limit, "seed": options.seed,
            "metadata": options.metadata, "chat template": options.apply_chat_template,
            "site": self.gates.site, "seeds": self.seeds, "truthgate_eval": __version__,
        }  # fmt: skip


def study(
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder; finished rows in it are kept.")],
    tasks: Annotated[str, typer.Option(help="Multiple-choice or yes/no tasks, comma-separated.")],
    model: Annotated[str, typer.Option(help="hf, or vlm and its like for images.")] = "hf",
    model_args: Annotated[
        list[str] | None,
        typer.Option("--model_args", "-a", help="As in the harness; repeat for several models."),
    ] = None,
    score: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A kind ({', '.join(_KINDS)}), or NAME=FILE for scores made elsewhere; repeat for several. "
            "Default: gradient and accuracy."
        ),
    ] = None,
    action: Annotated[str, typer.Option(help="soft, select, shift; comma-separated.")] = "soft,select",
    base_args: Annotated[
        str | None, typer.Option("--base_args", help="model_args of a base model, whose scores gate, too.")
    ] = None,
    base_tasks: Annotated[
        list[str] | None,
        typer.Option("--base_tasks", help="Tasks that the base's scores are made on; repeat for several."),
    ] = None,
    base_score: Annotated[str, typer.Option("--base_score", help="Kinds of the base's scores.")] = "gradient",
    base: Annotated[str, typer.Option(help="The base's model type.")] = "hf",
    kl: Annotated[
        str, typer.Option(help="Strengths: divergences from the vanilla model, comma-separated, in nats.")
    ] = "0.005,0.02",
    select: Annotated[
        int, typer.Option(min=1, help="Heads that select amplifies, and weakens, and that shift shifts.")
    ] = 20,
    controls: Annotated[int, typer.Option(min=0, help="Shuffled and random gates of each kind.")] = 2,
    limit: Annotated[float | None, typer.Option(help="Documents per task, or a fraction below 1.")] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", "-b", min=1, help="Documents in a batch.")] = 8,
    device: Annotated[str | None, typer.Option(help="Such as cuda:0 or cpu.")] = None,
    seed: Annotated[int, typer.Option(help="Which documents make scores, and which evaluate gates.")] = 42,
    seeds: Annotated[int, typer.Option(min=1, help="Fits of a learned gate.")] = 1,
    apply_chat_template: Annotated[bool, typer.Option("--apply_chat_template")] = False,
    site: Annotated[Literal["post", "pre"], typer.Option(help="Where the gates act.")] = "post",
    metadata: Annotated[str, typer.Option(help="JSON passed to the tasks, as in lm-eval.")] = "{}",
    include_path: Annotated[str | None, typer.Option("--include_path", help="Your own tasks.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what the folder holds.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help=f"{_QUICK_LIMIT} documents, one strength: does it run?")
    ] = False,
) -> None:
    """Compare kinds of scores as gates of a model: equal strength, controls, fresh documents."""
    from truthgate_eval.attribution.study_gates import STUDY_ACTIONS, StudyGates
    from truthgate_eval.attribution.study_report import save
    from truthgate_eval.cli.probe_data import DataOptions
    from truthgate_eval.harness.model_args import parse_metadata, parse_model_args

    if quick:
        limit, kl = limit or _QUICK_LIMIT, _QUICK_KL
    check_limit(limit, "--limit")
    if (base_args is None) != (base_tasks is None):
        raise TaskError("--base_args and --base_tasks belong together: which base, scored on which tasks")
    kinds, files = _parse_scores(score or ["gradient", "accuracy"])
    base_kinds = [check_choice("--base_score", kind, _KINDS, TaskError) for kind in base_score.split(",")]
    actions = tuple(check_choice("--action", name, STUDY_ACTIONS, TaskError) for name in action.split(","))
    models = [parse_model_args(text) for text in model_args or [""]]
    options = DataOptions(
        tasks=tuple(tasks.split(",")), limit=limit, seed=seed, num_fewshot=None,
        apply_chat_template=apply_chat_template, system_instruction=None, metadata=parse_metadata(metadata),
        include_path=include_path, surface_matched=False,
    )  # fmt: skip
    gates = StudyGates(actions, select, controls, controls, site)
    settings = _Settings(options, gates, _parse_kl(kl), seeds, batch_size, device, output)
    output.mkdir(parents=True, exist_ok=True)
    if fresh:
        for file in [*output.glob("*/row-*.json"), *output.glob("*/scores-*.npz")]:
            file.unlink()
    if base_args is not None:
        arguments = parse_model_args(base_args)
        for of_base in base_tasks or ():
            files |= _score_base(settings, base, arguments, of_base, base_kinds)
    results: dict[str, StudyResult] = {}
    for arguments in models:
        name, result = _study_model(settings, model, arguments, kinds, files)
        results[f"{name} ({len(results) + 1})" if name in results else name] = result
        _print(name, result)
    for file in save(results, settings.key, output):
        print_line(f"-> {file}")


def _study_model(
    settings: _Settings,
    model: str,
    arguments: dict[str, Any],
    kinds: list[str],
    files: dict[str, TruthScores],
) -> tuple[str, StudyResult]:
    """The model's name and its rows."""
    from truthgate_eval.attribution.study import correlations_within_layers, run_study, study_documents
    from truthgate_eval.attribution.study_gates import make_directions
    from truthgate_eval.attribution.study_rows import StudyRows

    loaded = settings.load(model, arguments, ",".join(settings.options.tasks))
    documents = study_documents(loaded.answers, settings.targets, settings.options.seed)
    key = {**settings.key, "model and images": loaded.fingerprint}
    folder = settings.folder / f"{_slug(loaded.name)}-{loaded.fingerprint[:8]}"
    folder.mkdir(exist_ok=True)
    maker = loaded.score_maker(
        documents.scoring, site=settings.gates.site, seeds=settings.seeds, batch_size=settings.batch_size
    )
    sources = {**_make_scores(maker, kinds, key, folder), **files}
    rows = StudyRows(
        loaded.model, loaded.layout, documents, folder=folder, key=key, batch_size=settings.batch_size
    )
    directions = make_directions(sources, loaded.layout.shape, settings.gates)
    with progress_bar() as bars:
        bar = bars.add_task(f"gates of {loaded.name}", total=len(directions))
        result = run_study(rows, directions, settings.targets, progress=partial(bars.advance, bar))
    result.reliability = {name: scores.metadata.get("reliability") for name, scores in sources.items()}
    result.correlations = correlations_within_layers(sources)
    return loaded.name, result


def _score_base(
    settings: _Settings, model: str, arguments: dict[str, Any], tasks: str, kinds: list[str]
) -> dict[str, TruthScores]:
    """The base's scores on tasks of its own, by name."""
    loaded = settings.load(model, arguments, tasks)
    folder = settings.folder / f"{_slug(loaded.name)}-{loaded.fingerprint[:8]}-{_slug(tasks)}"
    folder.mkdir(exist_ok=True)
    key = {**settings.key, "tasks": tasks, "model and images": loaded.fingerprint}
    maker = loaded.score_maker(
        loaded.answers, site=settings.gates.site, seeds=settings.seeds, batch_size=settings.batch_size
    )
    made = _make_scores(maker, kinds, key, folder)
    return {f"base {kind}, {tasks}": scores for kind, scores in made.items()}


def _make_scores(
    maker: ScoreMaker, kinds: list[str], key: dict[str, Any], folder: Path
) -> dict[str, TruthScores]:
    """Scores of each kind, kept in the folder."""
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
            made[kind] = maker.make(kind, partial(bars.advance, bar))
            made[kind].metadata["study"] = key
            made[kind].save(file)
    return made


def _print(name: str, result: StudyResult) -> None:
    """One model's table and conclusions."""
    from truthgate_eval.attribution.study_report import HEAD, table_rows

    table = Table(box=None, pad_edge=False, header_style="bold", title=name, title_justify="left")
    shown = [HEAD.index(column) for column in ("gate", "KL", "log-loss", "vs vanilla [95 %]", "AUROC")]
    for index in shown:
        table.add_column(HEAD[index], overflow="fold")
    cells = table_rows(result)
    for row in cells:
        table.add_row(*(row[index] for index in shown))
    console.print(table)
    for row in cells[1:]:
        print_line(f"{row[0]}, KL {row[1]}: {row[-1]}")
    for source in result.empty:
        print_line(f"{source}: no gate was better than none on the held-out documents, so it has no row")


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
        targets = tuple(float(part) for part in text.split(","))
    except ValueError:
        targets = (0.0,)
    if not all(0 < target < float("inf") for target in targets):
        raise TruthGateError(f"--kl {text}: expected positive numbers such as 0.005,0.02")
    return targets


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[-60:] or "model"
