"""`truthgate study`: gates of several kinds of scores on some models, at equal strength, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from truthgate_eval.cli.console import console, print_line
from truthgate_eval.cli.study_arguments import (
    KINDS,
    check_base_tasks,
    parse_kl,
    parse_own_tasks,
    parse_scores,
    supports_images,
)
from truthgate_eval.errors import TaskError, check_choice
from truthgate_eval.files import check_folder
from truthgate_eval.limits import check_limit
from truthgate_eval.probing.config import ProbeFormat

if TYPE_CHECKING:
    from truthgate_eval.attribution.study import StudyResult

_QUICK_LIMIT, _QUICK_KL = 150, "0.01"
# The options' panels in `--help`.
_MODELS, _DOCUMENTS, _GATES, _RUN = "Models", "Documents", "Scores and gates", "The run"


def study(
    *,
    model: Annotated[
        str, typer.Option(help="hf for text, vlm and its like for images.", rich_help_panel=_MODELS)
    ] = "hf",
    model_args: Annotated[
        list[str] | None,
        typer.Option(
            "--model_args",
            "-a",
            rich_help_panel=_MODELS,
            help="As in the harness, such as pretrained=MODEL; repeat for several models. Default: the "
            "packaged one.",
        ),
    ] = None,
    base: Annotated[str, typer.Option(help="The base's model type.", rich_help_panel=_MODELS)] = "hf",
    base_args: Annotated[
        str | None,
        typer.Option(
            "--base_args", help="model_args of a base model, whose scores gate, too.", rich_help_panel=_MODELS
        ),
    ] = None,
    base_tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--base_tasks",
            help="Tasks that the base's scores are made on; repeat for several.",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    base_score: Annotated[
        str, typer.Option("--base_score", help="Kinds of the base's scores.", rich_help_panel=_MODELS)
    ] = "gradient",
    tasks: Annotated[
        str,
        typer.Option(
            help="Multiple-choice or yes/no tasks, comma-separated. Their documents are divided: some make "
            "scores, some choose a strength, the others test the gates.",
            rich_help_panel=_DOCUMENTS,
        ),
    ],
    choose_tasks: Annotated[
        str | None,
        typer.Option(
            "--choose_tasks", help="Choose strengths on these tasks instead.", rich_help_panel=_DOCUMENTS
        ),
    ] = None,
    test_tasks: Annotated[
        str | None,
        typer.Option(
            "--test_tasks", help="Test the gates on these tasks instead.", rich_help_panel=_DOCUMENTS
        ),
    ] = None,
    include_path: Annotated[
        str | None,
        typer.Option("--include_path", help="A folder with your own tasks.", rich_help_panel=_DOCUMENTS),
    ] = None,
    metadata: Annotated[
        str, typer.Option(help="JSON passed to the tasks, as in lm-eval.", rich_help_panel=_DOCUMENTS)
    ] = "{}",
    apply_chat_template: Annotated[
        bool,
        typer.Option(
            "--apply_chat_template",
            rich_help_panel=_DOCUMENTS,
            help="Ask text tasks in the model's chat template; image tasks always are.",
        ),
    ] = False,
    format: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(get_args(ProbeFormat))}. Ask image tasks as they are evaluated, or in the "
            "authors' plain format.",
            rich_help_panel=_DOCUMENTS,
        ),
    ] = "task",
    limit: Annotated[
        float | None,
        typer.Option(
            help="The first documents of each task, or a fraction below 1. Default: all.",
            rich_help_panel=_DOCUMENTS,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="How documents are divided.", rich_help_panel=_DOCUMENTS)] = 42,
    score: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A kind ({', '.join(KINDS)}), or NAME=FILE for scores made elsewhere; repeat for several. "
            "Default: gradient and accuracy.",
            rich_help_panel=_GATES,
        ),
    ] = None,
    action: Annotated[
        str,
        typer.Option(
            help="soft multiplies each head by 1 + strength x score, select amplifies the best heads and "
            "weakens the worst, shift adds ITI's directions; comma-separated.",
            rich_help_panel=_GATES,
        ),
    ] = "soft,select",
    kl: Annotated[
        str,
        typer.Option(
            help="Strengths: mean divergences from the vanilla model in nats, comma-separated. Each gate "
            "takes the best one.",
            rich_help_panel=_GATES,
        ),
    ] = "0.005,0.02",
    select: Annotated[
        int,
        typer.Option(
            min=1,
            help="Heads that select amplifies, and weakens, and that shift shifts.",
            rich_help_panel=_GATES,
        ),
    ] = 20,
    controls: Annotated[
        int,
        typer.Option(min=0, help="Shuffled gates of each kind, and random gates.", rich_help_panel=_GATES),
    ] = 2,
    seeds: Annotated[int, typer.Option(min=1, help="Fits of a learned gate.", rich_help_panel=_GATES)] = 1,
    site: Annotated[
        Literal["post", "pre"],
        typer.Option(help="Gate the attention's output, or each head before it.", rich_help_panel=_GATES),
    ] = "post",
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="A folder; what is finished in it is kept.", rich_help_panel=_RUN
        ),
    ],
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            rich_help_panel=_RUN,
            help=f"--limit {_QUICK_LIMIT} and --kl {_QUICK_KL}, to see whether it runs.",
        ),
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget what the folder holds.", rich_help_panel=_RUN)
    ] = False,
    batch_size: Annotated[
        int, typer.Option("--batch_size", "-b", min=1, help="Documents in a batch.", rich_help_panel=_RUN)
    ] = 8,
    device: Annotated[str | None, typer.Option(help="Such as cuda:0 or cpu.", rich_help_panel=_RUN)] = None,
) -> None:
    """Compare kinds of scores as gates of a model: equal strength, controls, fresh documents.

    Text: truthgate study --model_args pretrained=MODEL --tasks TASK --limit 300 -o FOLDER

    Images: the same with --model vlm and a task of lmms-eval
    """
    from truthgate_eval.attribution.study_gates import STUDY_ACTIONS, StudyGates
    from truthgate_eval.attribution.study_report import save
    from truthgate_eval.cli.probe_data import DataOptions, check_text_format
    from truthgate_eval.harness.model_args import parse_metadata, parse_model_args

    if quick:
        limit, kl = limit or _QUICK_LIMIT, _QUICK_KL
    check_limit(limit, "--limit")
    if (base_args is None) != (base_tasks is None):
        raise TaskError("--base_args and --base_tasks belong together: which base, scored on which tasks")
    targets = parse_kl(kl)
    own_tasks = parse_own_tasks(tasks, choose_tasks, test_tasks, targets)
    check_base_tasks(base_tasks or [], tasks, own_tasks, targets)
    kinds, files = parse_scores(score or ["gradient", "accuracy"])
    base_kinds = [check_choice("--base_score", kind, KINDS, TaskError) for kind in base_score.split(",")]
    actions = tuple(check_choice("--action", name, STUDY_ACTIONS, TaskError) for name in action.split(","))
    models = [parse_model_args(text) for text in model_args or [""]]
    options = DataOptions(
        tasks=tuple(tasks.split(",")), limit=limit, seed=seed, num_fewshot=None,
        apply_chat_template=apply_chat_template, system_instruction=None, metadata=parse_metadata(metadata),
        include_path=include_path, surface_matched=False,
        format=check_choice("--format", format, get_args(ProbeFormat), TaskError),
    )  # fmt: skip
    if not supports_images(model):
        check_text_format(options)
    from truthgate_eval.cli.study_run import StudySettings, score_base, study_model

    gates = StudyGates(actions, select, controls, controls, site)
    settings = StudySettings(options, own_tasks, gates, targets, seeds, batch_size, device, output)
    check_folder(output).mkdir(parents=True, exist_ok=True)
    if fresh:
        for file in [*output.glob("*/row-*.json"), *output.glob("*/scores-*.npz")]:
            file.unlink()
    if base_args is not None:
        arguments = parse_model_args(base_args)
        for of_base in base_tasks or ():
            files |= score_base(settings, base, arguments, of_base, base_kinds)
    results: dict[str, StudyResult] = {}
    for arguments in models:
        name, result = study_model(settings, model, arguments, kinds, files)
        results[f"{name} ({len(results) + 1})" if name in results else name] = result
        _print(name, result)
    for file in save(results, settings.key, output):
        print_line(f"-> {file}")


def _print(name: str, result: StudyResult) -> None:
    """One model's table, and what can be concluded of each gate that is no control."""
    from truthgate_eval.analysis.terminal_table import SOFT_BREAK, Column, TerminalTable
    from truthgate_eval.attribution.study_report import HEAD, table_rows

    cells, vanilla = table_rows(result), result.vanilla
    names = [
        "gate",
        "KL",
        "log-loss",
        "vs vanilla [95 %]",
        "accuracy" if vanilla["auroc"] is None else "AUROC",
    ]
    shown = [HEAD.index(column) for column in names]
    table = TerminalTable(
        [Column("gate", justify="left", is_name=True), *map(Column, names[1:])],
        title=f"{name}, {vanilla['documents']} test documents in {vanilla['clusters']} clusters",
    )
    for texts in cells:
        table.add_row(*(texts[index].replace(" [", f"{SOFT_BREAK}[") for index in shown))
    console.print(table)
    for row, texts in zip(result.rows, cells[1:], strict=True):
        if not row["is_control"]:
            print_line(f"{texts[0]}, KL {texts[1]}: {texts[-1]}")
    for source in result.empty:
        print_line(f"{source}: no gate was better than none on the held-out documents, so it has no row")
