"""`truthgate sweep`: choose a gate on a held-out fifth of the data, and judge the choice on the rest."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from truthgate_eval.cli.console import console, print_line
from truthgate_eval.errors import TruthGateError
from truthgate_eval.harness.lmms_eval.registry import MODELS

if TYPE_CHECKING:
    from truthgate_eval.gating.gate_config import GateConfig
    from truthgate_eval.gating.scores import TruthScores
    from truthgate_eval.gating.sweep import Candidate, Evaluator
    from truthgate_eval.gating.sweep_store import SweepStore


def sweep(
    scores: Annotated[Path, typer.Argument(help="The artifact to choose a gate for; it is updated.")],
    tasks: Annotated[str, typer.Option(help="Tasks to choose on, comma-separated.")] = "halueval_qa",
    model: Annotated[
        str, typer.Option(help="hf (lm-eval), or gated_vlm, gated_llava, ... (lmms-eval).")
    ] = "hf",
    model_args: Annotated[
        str,
        typer.Option("--model_args", "-a", help="As in the host; hf's default: the small packaged model."),
    ] = "",
    lam: Annotated[str, typer.Option(help="Strengths to try, comma-separated.")] = "0.5,1,2,4",
    norm: Annotated[str, typer.Option(help="Norms to try, comma-separated.")] = "centered,minmax",
    site: Annotated[str, typer.Option(help="Sites to gate, comma-separated.")] = "post",
    layers: Annotated[
        str | None,
        typer.Option(help="Layers to gate, such as 15-29 or 3+8-15; those below run once. Default: all."),
    ] = None,
    metric: Annotated[str, typer.Option(help="The metric to choose by; higher is better.")] = "acc",
    limit: Annotated[int | None, typer.Option(min=1, help="Documents of a task, per setting.")] = None,
    rest_limit: Annotated[
        int | None, typer.Option("--rest_limit", min=0, help="Documents of a task's rest; 0: leave it out.")
    ] = None,
    random: Annotated[int, typer.Option(min=0, help="Also judge so many random gates on the rest.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Points, plot and runs. Default: SCORES.sweep.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", "-b", min=1)] = 8,
    device: Annotated[str | None, typer.Option(help="Such as cuda:0 or cpu.")] = None,
) -> None:
    """Choose lam, norm and site on a held-out fifth of the data; judge only the choice on the rest.

    Interrupted, it goes on where it was when the same command is given again.
    """
    from lm_eval.utils import simple_parse_args_string

    from truthgate_eval.gating.gate_config import GateConfig, parse_layers
    from truthgate_eval.gating.scores import TruthScores
    from truthgate_eval.gating.sweep import (
        REST,
        SELECTION,
        best_candidate,
        candidate_gate,
        format_candidates,
        make_grid,
        recommend,
    )
    from truthgate_eval.gating.sweep_plot import save_sweep_plot
    from truthgate_eval.gating.sweep_store import SweepStore

    artifact = TruthScores.load(scores)
    if scores.suffix != ".npz":
        raise TruthGateError(
            f"{scores} cannot hold a recommendation: make an .npz of it with truthgate import"
        )
    grid = make_grid(lam=lam, norm=norm, site=site)
    parse_layers(layers)  # a slip of the pen shows before the model is loaded
    names, arguments = tasks.split(","), simple_parse_args_string(model_args)
    identity = {
        "scores": artifact.fingerprint, "model": model, "model_args": arguments, "tasks": names,
        "metric": metric, "limit": limit, "rest_limit": rest_limit, "batch_size": batch_size,
        "layers": layers,
    }  # fmt: skip
    folder = SweepStore(output or scores.with_suffix(".sweep"), identity)
    settings = {
        "metric": metric, "model_args": arguments, "limits": {SELECTION: limit, REST: rest_limit},
        "batch_size": batch_size, "device": device, "layers": layers,
    }  # fmt: skip
    bench = _bench(artifact, scores, model, names, settings)
    gate = functools.partial(candidate_gate, artifact, str(scores), layers=layers)
    points = _judge_grid(bench, gate, grid, folder)
    console.print(format_candidates(points, metric))
    save_sweep_plot(points, metric, tasks, folder.plot_file)
    chosen = best_candidate(points)
    recommended = recommend(
        artifact, chosen, points, tasks=tasks, metric=metric, modality=bench.modality, layers=layers
    )
    recommended.save(scores)
    print_line(f"chosen: lam={chosen.lam:g},norm={chosen.norm},site={chosen.site} -> {scores}")
    print_line(f"plot -> {folder.plot_file}")
    if rest_limit != 0:
        gates = {"vanilla": GateConfig.parse("none")}
        if chosen.lam != 0:
            gates["chosen"] = gate(chosen)
        for seed in range(1, random + 1):
            gates[f"random-{seed}"] = GateConfig.parse(f"random:{seed}", site=chosen.site, layers=layers)
        _judge_rest(bench, gates, folder)


def _bench(
    artifact: TruthScores, scores: Path, model: str, names: list[str], settings: dict[str, Any]
) -> Evaluator:
    if model in MODELS:
        from loguru import logger

        from truthgate_eval.harness.lmms_eval.evaluator import LmmsEvalEvaluator

        logger.remove()  # lmms-eval's own log of every evaluation
        logger.add(sys.stderr, level="WARNING", format="{level}: {message}")
        return LmmsEvalEvaluator(artifact, model, names, **settings)
    if model not in ("hf", "gated_hf"):
        raise TruthGateError(f"--model {model}: a sweep takes hf, or one of {', '.join(MODELS)}")
    from truthgate_eval.harness.lm_eval.evaluator import LmEvalEvaluator

    return LmEvalEvaluator(artifact, str(scores), names, **settings)


def _judge_grid(
    bench: Evaluator, gate: Callable[[Candidate], GateConfig], grid: list[Candidate], folder: SweepStore
) -> list[Candidate]:
    """Every point of the grid with its value; finished ones come from the folder."""
    from truthgate_eval.gating.sweep import SELECTION

    done = folder.candidates()
    for number, point in enumerate(grid, start=1):
        known = point.label in done
        if not known:
            outcome = bench.evaluate(gate(point), SELECTION)
            done[point.label] = dataclasses.replace(point, **dataclasses.asdict(outcome))
            folder.add(done[point.label])
        # The host draws a bar for the documents of each setting; a second one would not stand beside it.
        value = f"{done[point.label].value:.4f}{' (from before)' if known else ''}"
        _note(f"[{number}/{len(grid)}] lam={point.lam:g},norm={point.norm},site={point.site}: {value}")
    return [done[point.label] for point in grid]


def _judge_rest(bench: Evaluator, gates: dict[str, GateConfig], folder: SweepStore) -> None:
    """The vanilla model, the choice and random gates on the documents that did not take part in choosing."""
    from truthgate_eval.gating.sweep import REST

    folders = []
    for number, (name, gate) in enumerate(gates.items(), start=1):
        run, outcome = folder.test_result(name, gate, functools.partial(bench.evaluate, gate, REST))
        folders.append(run)
        _note(f"[{number}/{len(gates)}] {name}, the rest, n = {outcome.documents}: {outcome.value:.4f}")
    if len(folders) == 1:
        print_line(f"the choice is the vanilla model; its run on the rest -> {folders[0]}")
        return
    _compare(folders)


def _note(line: str) -> None:
    """Progress goes to stderr, and stays."""
    sys.stderr.write(f"{line}\n")


def _compare(folders: list[Path]) -> None:
    from truthgate_eval.analysis.leaderboard.formats import footnote, terminal_tables
    from truthgate_eval.analysis.leaderboard.table import make_leaderboard
    from truthgate_eval.analysis.runs.methods import make_entries
    from truthgate_eval.analysis.runs.run import read_run

    leaderboard = make_leaderboard(
        make_entries([(None, read_run(folder)) for folder in folders]), published="none"
    )
    for board in terminal_tables(leaderboard):
        console.print(board)
    print_line(footnote(leaderboard))
    for warning in leaderboard.warnings:
        print_line(f"warning: {warning}")
    print_line(f"again, or with other runs: truthgate compare {' '.join(map(str, folders))}")
