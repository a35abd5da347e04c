"""`truthgate sweep`: choose a gate on a held-out fifth of the documents, and evaluate it on the rest."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from truthgate_eval.cli.console import console, print_line
from truthgate_eval.credentials import drop_credentials, mask_credentials
from truthgate_eval.errors import TruthGateError
from truthgate_eval.escaping import terminal_text
from truthgate_eval.harness.lmms_eval.registry import MODELS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from truthgate_eval.analysis.terminal_table import TerminalTable
    from truthgate_eval.gating.gate_config import GateConfig
    from truthgate_eval.gating.scores import TruthScores
    from truthgate_eval.gating.sweep import Candidate
    from truthgate_eval.gating.sweep_store import SweepStore
    from truthgate_eval.harness.evaluator import Evaluator, EvaluatorConfig


def sweep(
    scores: Annotated[Path, typer.Argument(help="The artifact to choose a gate for; it is updated.")],
    tasks: Annotated[str, typer.Option(help="Tasks to choose on, comma-separated.")] = "halueval_qa",
    model: Annotated[
        str, typer.Option(help="hf (lm-eval), or gated_vlm, gated_llava, ... (lmms-eval).")
    ] = "hf",
    model_args: Annotated[
        str,
        typer.Option("--model_args", "-a", help="As in the harness; hf's default: the small packaged model."),
    ] = "",
    lam: Annotated[
        str,
        typer.Option(help="Strengths to try, comma-separated; kl:0.05 finds the one of that divergence."),
    ] = "0.5,1,2,4",
    norm: Annotated[str, typer.Option(help="Norms to try, comma-separated.")] = "centered,minmax",
    site: Annotated[str, typer.Option(help="Sites to gate, comma-separated.")] = "post",
    layers: Annotated[
        str | None,
        typer.Option(help="Layers to gate, such as 15-29 or 3+8-15; those below run once. Default: all."),
    ] = None,
    metric: Annotated[
        str,
        typer.Option(help="The metric to choose by: its highest value, of a log-loss or CHAIR its smallest."),
    ] = "acc",
    limit: Annotated[
        float | None, typer.Option(help="Documents of a task, per setting, or a fraction below 1.")
    ] = None,
    rest_limit: Annotated[
        float | None,
        typer.Option(
            "--rest_limit", min=0, help="As --limit, for a task's test split; 0: leave the test out."
        ),
    ] = None,
    random: Annotated[
        int, typer.Option(min=0, help="Also evaluate so many random gates on the test split.")
    ] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Points, plot and runs. Default: SCORES.sweep.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", "-b", min=1)] = 8,
    device: Annotated[str | None, typer.Option(help="Such as cuda:0 or cpu.")] = None,
) -> None:
    """Choose lam, norm and site on a held-out fifth of the data; evaluate only the choice on the rest.

    An interrupted sweep continues where it was when the same command is given again.
    """
    from truthgate_eval.data.splits import SELECTION, TEST
    from truthgate_eval.gating.gate_arguments import parse_layers
    from truthgate_eval.gating.scores import TruthScores
    from truthgate_eval.gating.sweep import candidate_gate, make_grid
    from truthgate_eval.gating.sweep_store import SweepStore
    from truthgate_eval.harness.cache_keys import digest
    from truthgate_eval.harness.evaluator import EvaluatorConfig
    from truthgate_eval.harness.model_args import parse_model_args
    from truthgate_eval.limits import check_limit

    # All arguments are checked before the model is loaded.
    if scores.parts[:1] == ("hf:",):
        raise TruthGateError(
            "a sweep writes its choice into the artifact: copy it from the hub first, with "
            "truthgate import hf://... -o FILE.npz"
        )
    artifact = TruthScores.load(scores)
    if scores.suffix != ".npz":
        raise TruthGateError(
            f"{scores} cannot hold a recommendation: make an .npz of it with truthgate import"
        )
    check_limit(limit, "--limit")
    grid = make_grid(lam=lam, norm=norm, site=site)
    parse_layers(layers)
    config = EvaluatorConfig(
        tasks=tasks.split(","),
        metric=metric,
        model_args=parse_model_args(model_args),
        limits={SELECTION: limit, TEST: rest_limit or None},
        layers=layers,
        batch_size=batch_size,
        device=device,
    )
    identity = {
        "scores": artifact.fingerprint, "model": model, "model_args": mask_credentials(config.model_args),
        "tasks": config.tasks, "metric": metric, "limit": limit, "rest_limit": rest_limit,
        "batch_size": batch_size, "layers": layers,
    }  # fmt: skip
    if identity["model_args"] != config.model_args:  # those of another model may be masked alike
        identity["model_args_sha256"] = digest(drop_credentials(config.model_args))
    store = SweepStore(output or scores.with_suffix(".sweep"), identity)
    evaluator = _load_evaluator(artifact, scores, model, config)
    gates = [candidate_gate(artifact, str(scores), candidate, layers=layers) for candidate in grid]
    candidates = _evaluate_grid(evaluator, grid, gates, store)
    chosen = _recommend(artifact, scores, candidates, evaluator, store)
    if rest_limit != 0:
        gate = candidate_gate(artifact, str(scores), chosen, layers=layers)
        _evaluate_on_test_split(evaluator, _test_gates(gate, chosen, random, layers), store)


def _load_evaluator(artifact: TruthScores, scores: Path, model: str, config: EvaluatorConfig) -> Evaluator:
    if model in MODELS:
        from truthgate_eval.harness.lmms_eval.evaluator import LmmsEvalEvaluator
        from truthgate_eval.harness.quiet import log_to_stderr

        log_to_stderr()  # after lmms_eval's import, which sends its log to stdout
        return LmmsEvalEvaluator(artifact, model, config)
    if model not in ("hf", "gated_hf"):
        raise TruthGateError(f"--model {model}: a sweep takes hf, or one of {', '.join(MODELS)}")
    from truthgate_eval.harness.lm_eval.evaluator import LmEvalEvaluator

    return LmEvalEvaluator(artifact, str(scores), config)


def _evaluate_grid(
    evaluator: Evaluator, grid: list[Candidate], gates: list[GateConfig], store: SweepStore
) -> list[Candidate]:
    """All candidates with their metric; those that the folder has are not evaluated again."""
    from truthgate_eval.data.splits import SELECTION

    done = store.candidates()
    for number, (candidate, gate) in enumerate(zip(grid, gates, strict=True), start=1):
        from_before = candidate.label in done
        if not from_before:
            if gate.is_pending:
                gate = evaluator.find_strength(gate)
                candidate = candidate.with_strength(gate)
            done[candidate.label] = candidate.with_result(evaluator.evaluate(gate, SELECTION))
            store.add(done[candidate.label])
        # The harness has a progress bar of documents for each candidate; a second bar would collide with it.
        value = f"{done[candidate.label].value:.4f}{' (from before)' if from_before else ''}"
        _print_progress(f"[{number}/{len(grid)}] {_setting(done[candidate.label])}: {value}")
    return [done[candidate.label] for candidate in grid]


def _recommend(
    artifact: TruthScores, scores: Path, candidates: list[Candidate], evaluator: Evaluator, store: SweepStore
) -> Candidate:
    """Choose a candidate, save it in the artifact, and print and plot all of them."""
    from truthgate_eval.data.splits import SELECTION
    from truthgate_eval.gating.sweep import best_candidate, recommend
    from truthgate_eval.gating.sweep_plot import save_sweep_plot
    from truthgate_eval.metrics import chair, log_odds

    config, tasks = evaluator.config, ",".join(evaluator.config.tasks)
    is_loss = config.metric in (*log_odds.LOSSES, *chair.LOSSES)
    chosen, conditions = best_candidate(candidates, smallest=is_loss), find_conditions(config.model_args)
    console.print(_candidates_table(candidates, chosen, config.metric))
    save_sweep_plot(candidates, chosen, config.metric, tasks, store.plot_file)
    recommended = recommend(
        artifact,
        chosen,
        candidates,
        tasks=tasks,
        metric=config.metric,
        modality=evaluator.modality,
        split=SELECTION,
        layers=config.layers,
        conditions=conditions,
    )
    recommended.save(scores)
    under = "".join(f", {name}={value}" for name, value in conditions.items())
    print_line(f"chosen: {_setting(chosen)}{under and f' with{under[1:]}'} -> {scores}")
    print_line(f"plot -> {store.plot_file}")
    return chosen


def find_conditions(model_args: Mapping[str, Any]) -> dict[str, Any]:
    """The model arguments that change what every candidate answers: a contrast, a system instruction.

    Args:
        model_args: Those of the sweep.

    Example:
        >>> find_conditions({"pretrained": "m", "contrast": 0.5, "system_instruction": "Be brief."})
        {'contrast': 0.5, 'system_instruction': 'Be brief.'}
        >>> find_conditions({"contrast": 0, "contrast_image": "none"})
        {}
    """
    from truthgate_eval.gating.gate_arguments import is_missing
    from truthgate_eval.harness.contrast import CONTRAST_ARGUMENTS, Contrast

    names: tuple[str, ...] = ("system_instruction",)
    if Contrast.parse(model_args) is not None:
        names = (*CONTRAST_ARGUMENTS, *names)
    return {name: model_args[name] for name in names if not is_missing(model_args.get(name))}


def _candidates_table(candidates: list[Candidate], chosen: Candidate, metric: str) -> TerminalTable:
    """All candidates, with the chosen one marked."""
    from truthgate_eval.analysis.terminal_table import Column, TerminalTable

    names = ("lam", "norm", "site", metric, "± stderr", "")
    table = TerminalTable(
        [Column(name, "right" if name in ("lam", metric, "± stderr") else "left") for name in names],
        title=f"{metric} on the held-out fifth, n = {candidates[0].documents}",
    )
    for candidate in candidates:
        own = ("-", "-") if candidate.lam == 0 else (candidate.norm, candidate.site)
        stderr = "" if candidate.stderr is None else f"{candidate.stderr:.4f}"
        mark = "chosen" if candidate is chosen else ""
        table.add_row(candidate.strength, *own, f"{candidate.value:.4f}", stderr, mark)
    return table


def _setting(candidate: Candidate) -> str:
    """A candidate as model arguments, with the divergence by which its lam was found."""
    found = "" if candidate.target is None else f" (kl:{candidate.target:g})"
    return f"lam={candidate.lam:g},norm={candidate.norm},site={candidate.site}{found}"


def _test_gates(
    chosen_gate: GateConfig, chosen: Candidate, num_random: int, layers: str | None
) -> dict[str, GateConfig]:
    """The gates to evaluate on the test split, by the names of their runs.

    Where the choice has a strength of a given divergence, random gates are to have it as well.
    """
    from truthgate_eval.gating.gate_config import GateConfig

    gates = {"vanilla": GateConfig.parse("none")}
    if chosen.lam != 0:
        gates["chosen"] = chosen_gate
    for seed in range(1, num_random + 1):
        lam = None if chosen.target is None else f"kl:{chosen.target!r}"
        gates[f"random-{seed}"] = GateConfig.parse(f"random:{seed}", lam=lam, site=chosen.site, layers=layers)
    return gates


def _evaluate_on_test_split(evaluator: Evaluator, gates: dict[str, GateConfig], store: SweepStore) -> None:
    """Evaluate the vanilla model, the choice and random gates on documents that nothing was chosen on."""
    from truthgate_eval.data.splits import TEST

    for name, gate in gates.items():  # before the test split: the strengths are found on the other one
        if gate.is_pending:
            gates[name] = store.found_strength(name, gate, functools.partial(evaluator.find_strength, gate))
    folders = []
    for number, (name, gate) in enumerate(gates.items(), start=1):
        evaluate = functools.partial(evaluator.evaluate, gate, TEST)
        folder, result = store.test_result(name, gate, evaluate)
        folders.append(folder)
        _print_progress(
            f"[{number}/{len(gates)}] {name}, test split, n = {result.documents}: {result.value:.4f}"
        )
    if len(folders) == 1:
        print_line(f"the choice is the vanilla model; its run on the test split -> {folders[0]}")
        return
    _print_comparison(folders)


def _print_progress(line: str) -> None:
    """Print a line of progress on stderr, so that stdout stays clean for pipes."""
    sys.stderr.write(f"{terminal_text(line)}\n")


def _print_comparison(folders: list[Path]) -> None:
    from truthgate_eval.analysis.leaderboard.cells import footnote
    from truthgate_eval.analysis.leaderboard.table import make_leaderboard
    from truthgate_eval.analysis.leaderboard.terminal import terminal_tables
    from truthgate_eval.analysis.runs.methods import make_entries
    from truthgate_eval.analysis.runs.run import read_run

    leaderboard = make_leaderboard(
        make_entries([(None, read_run(folder)) for folder in folders]), published="none"
    )
    for table in terminal_tables(leaderboard):
        console.print(table)
    print_line(footnote(leaderboard))
    for warning in leaderboard.warnings:
        print_line(f"warning: {warning}")
    print_line(f"again, or with other runs: truthgate compare {' '.join(map(str, folders))}")
