"""`truthgate probe`: from a text or vision-language model and a task to a score artifact."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from truthgate_eval.attribution.config import ATTRIBUTION_KINDS
from truthgate_eval.cli.console import console, print_line, progress_bar
from truthgate_eval.errors import ProbeError, TaskError, check_choice
from truthgate_eval.harness.lmms_eval.registry import MODELS
from truthgate_eval.limits import check_limit
from truthgate_eval.probing.config import (
    CONTEXT_GAIN,
    NO_CONTEXT,
    CaptureConfig,
    ControlName,
    ImageCondition,
    ProbeConfig,
    ProbeFormat,
    SolverName,
    SplitUnit,
    check_condition,
    check_control,
)
from truthgate_eval.processes import Processes, check_one_process, in_all_processes, join

if TYPE_CHECKING:
    from truthgate_eval.cli.attribution_jobs import AttributionJob
    from truthgate_eval.cli.probe_jobs import ProbeJob
    from truthgate_eval.gating.scores import TruthScores
    from truthgate_eval.probing.capture_store import CaptureStore

log = logging.getLogger(__name__)

ScoreKind = Literal[
    "accuracy", "auroc", "context-gain", "gradient", "learned", "divergence", "direct-effect", "copy"
]


def _choice(choices: Any, text: str, *names: str) -> Any:
    """An option whose choices `--help` shows. Our own checks report a wrong one, in one line."""
    return typer.Option(*names, help=f"{', '.join(get_args(choices))}. {text}", metavar="<name>", parser=str)


@in_all_processes
def probe(
    output: Annotated[Path, typer.Option("--output", "-o", help="The .npz to write.")],
    tasks: Annotated[
        str | None,
        typer.Option(help="Multiple-choice or yes/no tasks of lm-eval or lmms-eval, comma-separated."),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="hf, or another lm-eval model over transformers; vlm or gated_llava, ... for images."
        ),
    ] = "hf",
    model_args: Annotated[
        str,
        typer.Option(
            "--model_args", "-a", help="As in the harness; hf's default: the packaged SmolLM2-135M."
        ),
    ] = "",
    image: Annotated[
        ImageCondition,
        _choice(ImageCondition, "With a vlm: the document's own image, none, or a black one."),
    ] = "document",
    format: Annotated[
        ProbeFormat,
        _choice(ProbeFormat, "As the task is evaluated, or in the authors' plain format (image tasks)."),
    ] = "task",
    sequences: Annotated[
        Path | None, typer.Option(help="With a vlm: the authors' JSON lines, instead of tasks.")
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option("--images", help="Their folder of images; repeat for several.")
    ] = None,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing", "--allow_missing", help="Leave out sequences whose image is missing."
        ),
    ] = False,
    limit: Annotated[float | None, typer.Option(help="Documents per task, or a fraction below 1.")] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", "-b", min=1, help="Sequences in a batch.")] = 8,
    device: Annotated[str | None, typer.Option(help="Such as cuda:0 or cpu.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses folds and few-shot examples.")] = 42,
    apply_chat_template: Annotated[bool, typer.Option("--apply_chat_template")] = False,
    system_instruction: Annotated[str | None, typer.Option("--system_instruction")] = None,
    num_fewshot: Annotated[int | None, typer.Option("--num_fewshot", "-f", min=0)] = None,
    metadata: Annotated[str, typer.Option(help="JSON passed to the tasks, as in lm-eval.")] = "{}",
    include_path: Annotated[
        str | None, typer.Option("--include_path", help="A folder with your own tasks.")
    ] = None,
    site: Annotated[
        Literal["post", "pre"],
        _choice(Literal["post", "pre"], "Read W_o's output (post) or its input (pre)."),
    ] = "post",
    solver: Annotated[
        SolverName, _choice(SolverName, "The paper's (adamw), or to convergence (newton).")
    ] = "adamw",
    folds: Annotated[int, typer.Option(min=1, help="Mean over this many folds; 1: one 4:1 split.")] = 5,
    split: Annotated[
        SplitUnit, _choice(SplitUnit, "What is in one fold only: a question's sequences, or each sequence.")
    ] = "question",
    seeds: Annotated[int, typer.Option(min=1, help="Fit on this many assignments of folds; their mean.")] = 1,
    score: Annotated[
        str,
        _choice(
            ScoreKind,
            "What is saved. The first three are a probe's; the others are in docs/method.md, Kinds of score.",
        ),
    ] = "accuracy",
    control: Annotated[
        list[str] | None, _choice(ControlName, "What else to probe; repeat for several.", "--control")
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="GiB of activations above which they go to a file beside the output. Default: half of what "
            "is free.",
        ),
    ] = None,
    surface_matched: Annotated[
        bool,
        typer.Option(
            "--surface-matched", "--surface_matched", help="Only answers of equal length, without full stops."
        ),
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin anew: drop what an interrupted probe has left.")
    ] = False,
) -> None:
    """Probe every attention head of a model and save the truth scores."""
    from truthgate_eval.cli.attribution_jobs import make_lm_attribution, make_vlm_attribution
    from truthgate_eval.cli.probe_data import AuthorsFile, DataOptions, check_text_format
    from truthgate_eval.cli.probe_jobs import make_lm_job, make_vlm_job
    from truthgate_eval.gating.scores import check_output
    from truthgate_eval.harness.model_args import parse_metadata, parse_model_args
    from truthgate_eval.probing.capture_store import CaptureStore

    # What a typo can break is checked before a model is loaded.
    check_output(output)
    if output.exists():
        log.warning("%s exists: it is replaced when this probe is done", output)
    check_limit(limit, "--limit")
    kind = check_choice("score", score, get_args(ScoreKind), ProbeError)
    config = ProbeConfig(
        solver=solver, folds=folds, split=split, seed=seed, seeds=seeds,
        score="accuracy" if kind in ATTRIBUTION_KINDS else kind,
    )  # fmt: skip
    capture_config = CaptureConfig(site=site, batch_size=batch_size, memory=memory, scratch=output.parent)
    check_condition(image)
    if kind == "learned":
        check_one_process("truthgate probe --score learned")
    processes = join()
    controls = list(map(check_control, control or []))
    if kind in ATTRIBUTION_KINDS and controls:
        raise ProbeError(f"--control {controls[0]} is for probes: --score {kind} fits none")
    if kind == CONTEXT_GAIN:
        controls.append(NO_CONTEXT)
    takes_images = model == "vlm" or model in MODELS
    if not takes_images and (image != "document" or sequences or images or allow_missing):
        raise TaskError("--image, --sequences, --images and --allow-missing need --model vlm or its like")
    if not tasks and not sequences:
        raise TaskError("nothing to probe on: name multiple-choice tasks with --tasks")
    arguments = parse_model_args(model_args)
    options = DataOptions(
        tasks=tuple(tasks.split(",")) if tasks else (),
        limit=limit,
        seed=seed,
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
        system_instruction=system_instruction,
        metadata={**arguments, **parse_metadata(metadata)},
        include_path=include_path,
        surface_matched=surface_matched,
        format=check_choice("--format", format, get_args(ProbeFormat), TaskError),
    )
    if not takes_images:
        check_text_format(options)
    source = AuthorsFile(sequences, tuple(images or ()), allow_missing) if sequences else None
    if kind in ATTRIBUTION_KINDS:
        own: dict[str, Any] = {
            "site": site, "seeds": seeds, "device": device, "batch_size": batch_size, "processes": processes,
        }  # fmt: skip
        attribution = (
            make_vlm_attribution(kind, model, arguments, options, image=image, file=source, **own)
            if takes_images
            else make_lm_attribution(kind, model, arguments, options, **own)
        )
        _save_attribution(attribution, kind, output, batch_size, processes)
        return
    if takes_images:
        job = make_vlm_job(
            model, arguments, options, controls, image=image, file=source, device=device, processes=processes
        )
    else:
        job = make_lm_job(
            model, arguments, options, controls, device=device, batch_size=batch_size, processes=processes
        )
    store = CaptureStore(output.with_name(f"{output.name}.partial"), job.model_digest)
    if fresh:
        store.clear()
    scores = _run(job, config, capture_config, store)
    _save(scores, partial(job.measure_answers, batch_size), output, processes)
    processes.exchange(None)  # the first process has written the artifact
    store.remove()
    _print_summary(scores, output)


def _run(
    job: ProbeJob, config: ProbeConfig, capture_config: CaptureConfig, store: CaptureStore
) -> TruthScores:
    with progress_bar() as bars:
        activations = bars.add_task("activations", total=job.num_sequences)
        probes = bars.add_task("probes", total=config.seeds * job.num_probes)
        return job.run(
            config,
            capture_config=capture_config,
            capture_progress=lambda done: bars.advance(activations, done),
            probe_progress=lambda done: bars.advance(probes, done),
            store=store,
        )


def _save(
    scores: TruthScores, measure_answers: Callable[[], dict[str, Any]], output: Path, processes: Processes
) -> None:
    """Write the artifact, and again with what the model itself makes of the answers."""
    if processes.is_main:
        scores.save(output)
    scores.metadata["own_answers"] = processes.on_main(measure_answers)
    if processes.is_main:
        scores.save(output)


def _save_attribution(
    job: AttributionJob, kind: str, output: Path, batch_size: int, processes: Processes
) -> None:
    from truthgate_eval.analysis.heads.reliability import format_reliability

    with progress_bar() as bars:
        documents = bars.add_task(kind, total=job.total)
        scores = job.run(lambda done: bars.advance(documents, done))
        bars.update(documents, completed=job.total)  # of other processes' documents nothing is told before
    _save(scores, partial(job.measure_answers, batch_size), output, processes)
    print_line(f"{scores.shape[0]} x {scores.shape[1]} scores ({kind}) of {scores.model} -> {output}")
    reliability = format_reliability(scores.metadata.get("reliability") or {})
    if reliability:
        print_line(f"split-half reliability {reliability}; show them with: truthgate show {output}")
    _print_answers(scores)


def _print_summary(scores: TruthScores, output: Path) -> None:
    from truthgate_eval.analysis.heads.control_report import print_controls

    print_line(f"{scores.shape[0]} x {scores.shape[1]} truth scores of {scores.model} -> {output}")
    print_controls(scores, console)
    mean, best = scores.scores.mean(), scores.scores.max()
    print_line(f"mean {mean:.3f}, best {best:.3f}; show them with: truthgate show {output}")
    _print_answers(scores)


def _print_answers(scores: TruthScores) -> None:
    """What the model itself makes of the answers, and the warnings."""
    from truthgate_eval.cli.artifact_lines import describe_own_answers, warnings_of

    own = describe_own_answers(scores.metadata)
    for line in [*([f"the model's own answers: {own}"] if own else []), *warnings_of(scores)]:
        print_line(line)
