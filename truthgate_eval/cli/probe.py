"""`truthgate probe`: activations of a text or vision-language model, probes, and a score artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from truthgate_eval.cli.console import console, print_line, progress_bar
from truthgate_eval.errors import TaskError, TruthGateError
from truthgate_eval.harness.lmms_eval.registry import MODELS


def probe(
    output: Annotated[Path, typer.Option("--output", "-o", help="The .npz to write.")],
    tasks: Annotated[
        str | None, typer.Option(help="Multiple-choice tasks of lm-eval or lmms-eval, comma-separated.")
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="hf, or another lm-eval model over transformers; vlm, gated_llava, ... with pictures."
        ),
    ] = "hf",
    model_args: Annotated[
        str,
        typer.Option("--model_args", "-a", help="As in the host; hf's default: the packaged SmolLM2-135M."),
    ] = "",
    image: Annotated[
        str, typer.Option(help="With a vlm: the document's own picture, none, or a black one.")
    ] = "document",
    sequences: Annotated[
        Path | None, typer.Option(help="With a vlm: the authors' JSON lines, instead of tasks.")
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option("--images", help="Their folder of pictures; repeat for several.")
    ] = None,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing", "--allow_missing", help="Leave out sequences whose picture is missing."
        ),
    ] = False,
    limit: Annotated[float | None, typer.Option(help="Documents per task, or a fraction below 1.")] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", "-b", min=1, help="Sequences a batch.")] = 8,
    device: Annotated[str | None, typer.Option(help="Such as cuda:0 or cpu.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses folds and few-shot examples.")] = 42,
    apply_chat_template: Annotated[bool, typer.Option("--apply_chat_template")] = False,
    system_instruction: Annotated[str | None, typer.Option("--system_instruction")] = None,
    num_fewshot: Annotated[int | None, typer.Option("--num_fewshot", "-f", min=0)] = None,
    metadata: Annotated[str, typer.Option(help="JSON passed to the tasks, as in lm-eval.")] = "{}",
    include_path: Annotated[
        str | None, typer.Option("--include_path", help="A folder with tasks of your own.")
    ] = None,
    site: Annotated[str, typer.Option(help="Read W_o's output (post) or its input (pre).")] = "post",
    solver: Annotated[str, typer.Option(help="adamw (the paper's) or newton (to convergence).")] = "adamw",
    folds: Annotated[int, typer.Option(min=1, help="Mean over this many folds; 1: one 4:1 split.")] = 5,
    split: Annotated[str, typer.Option(help="Keep a question's sequences together, or not: sequence.")] = (
        "question"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="Fit on this many assignments of folds; their mean.")] = 1,
    score: Annotated[
        str, typer.Option(help="accuracy, auroc, or context-gain: accuracy minus that without context.")
    ] = "accuracy",
    control: Annotated[
        list[str] | None,
        typer.Option(help="surface, no-context, swapped-context or shuffled-labels; repeat for several."),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="GiB of activations above which they go to a file beside the output; half of what is free.",
        ),
    ] = None,
    surface_matched: Annotated[
        bool,
        typer.Option(
            "--surface-matched", "--surface_matched", help="Only answers of equal length, without full stops."
        ),
    ] = False,
) -> None:
    """Probe every attention head of a model and save the truth scores."""
    from lm_eval.utils import simple_parse_args_string

    from truthgate_eval.analysis.heads.control_report import print_controls
    from truthgate_eval.cli.probe_jobs import AuthorsFile, make_lm_job, make_vlm_job
    from truthgate_eval.gating.attention_layout import check_site
    from truthgate_eval.gating.scores import check_output
    from truthgate_eval.probing.controls import NO_CONTEXT, check_controls
    from truthgate_eval.probing.cross_validation import check_solver
    from truthgate_eval.probing.folds import check_split
    from truthgate_eval.probing.image_conditions import check_condition
    from truthgate_eval.probing.run import CONTEXT_GAIN, check_score

    # What a typo can break is checked before minutes are spent on it.
    check_output(output)
    check_site(site)
    check_solver(solver)
    check_split(split, folds)
    check_condition(image)
    check_score(score)
    controls = [*(control or []), *([NO_CONTEXT] if score == CONTEXT_GAIN else [])]
    check_controls(controls)
    pictured = model == "vlm" or model in MODELS
    if not pictured and (image != "document" or sequences or images or allow_missing):
        raise TaskError("--image, --sequences, --images and --allow-missing need --model vlm or its like")
    arguments = simple_parse_args_string(model_args)
    names = tasks.split(",") if tasks else []
    if not names and not sequences:
        raise TaskError("nothing to probe on: name multiple-choice tasks with --tasks")
    options = {
        "limit": limit,
        "seed": seed,
        "num_fewshot": num_fewshot,
        "apply_chat_template": apply_chat_template,
        "system_instruction": system_instruction,
        "metadata": {**arguments, **_json(metadata)},
        "include_path": include_path,
        "surface_matched": surface_matched,
    }
    if pictured:
        source = AuthorsFile(sequences, images or [], allow_missing) if sequences else None
        job = make_vlm_job(
            model, arguments, names, options, controls, image=image, file=source, device=device
        )
    else:
        job = make_lm_job(model, arguments, names, options, controls, device=device, batch_size=batch_size)
    with progress_bar() as bars:
        forward = bars.add_task("activations", total=job.sequences)
        fitting = bars.add_task("probes", total=seeds * job.probes)
        scores = job.capture_run(
            site=site,
            solver=solver,
            folds=folds,
            split=split,
            seed=seed,
            seeds=seeds,
            score=score,
            batch_size=batch_size,
            memory=memory,
            scratch=output.parent,
            capture_progress=lambda done: bars.advance(forward, done),
            probe_progress=lambda done: bars.advance(fitting, done),
        )
    scores.save(output)
    print_line(f"{scores.shape[0]} x {scores.shape[1]} truth scores of {scores.model} -> {output}")
    print_controls(scores, console)
    mean, best = scores.scores.mean(), scores.scores.max()
    print_line(f"mean {mean:.3f}, best {best:.3f}; look at them with: truthgate show {output}")


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise TruthGateError(f"--metadata is not JSON ({error}): {text}") from error
    if not isinstance(value, dict):
        raise TruthGateError(f"--metadata must be a JSON object, got {text}")
    return value
