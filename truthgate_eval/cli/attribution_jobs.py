"""The jobs of `truthgate probe --score gradient` and its kin: a loaded model and its documents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.attribution import run
from truthgate_eval.attribution.config import AttributionKind
from truthgate_eval.attribution.image_answers import tokenize_with_images
from truthgate_eval.attribution.log_odds import answer_documents
from truthgate_eval.cli.probe_data import (
    AuthorsFile,
    DataOptions,
    check_not_split,
    load_text,
    load_vlm_dataset,
    on_own_device,
    writes_chat_template,
)
from truthgate_eval.cli.probe_jobs import image_answers, text_answers
from truthgate_eval.errors import TaskError
from truthgate_eval.gating.attention_layout import AttentionLayout, Site, find_attention_layout
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.inference import self_check
from truthgate_eval.inference.shared_prefix import SharedPrefixModel
from truthgate_eval.metrics.yes_no import parse_yes_no
from truthgate_eval.probing.artifact import describe_data, describe_model
from truthgate_eval.probing.capture import capture
from truthgate_eval.probing.config import DOCUMENT, NO_CONTEXT, NONE, ImageCondition
from truthgate_eval.probing.controls import context_change
from truthgate_eval.probing.dataset import ProbeDataset
from truthgate_eval.probing.image_capture import capture_with_images
from truthgate_eval.probing.image_conditions import apply_image_condition
from truthgate_eval.processes import ONE_PROCESS, Processes

Progress = Callable[[int], None]


@dataclass(frozen=True)
class AttributionJob:
    """An attribution run that needs only to be started.

    Attributes:
        run: Runs it; its argument is told how many documents or sequences are done.
        total: How many there are, for a progress bar; None where it is not known before.
        measure_answers: As in `ProbeJob`.
    """

    run: Callable[[Progress], TruthScores]
    total: int | None
    measure_answers: Callable[[int], dict[str, Any]]


def make_lm_attribution(
    kind: AttributionKind,
    model: str,
    arguments: dict[str, Any],
    options: DataOptions,
    *,
    site: Site,
    seeds: int,
    device: str | None,
    batch_size: int,
    processes: Processes = ONE_PROCESS,
) -> AttributionJob:
    """A text model on lm-eval's tasks.

    Args:
        kind: What is measured.
        model: As on lm-eval's command line.
        arguments: Its model_args.
        options: The documents.
        site: Where the gate will act.
        seeds: On how many splits a learned gate is fitted.
        device: As in lm-eval.
        batch_size: Documents in a batch.
        processes: Those that run this together.
    """
    from truthgate_eval.harness.lm_eval.probing import load_lm, tokenize

    check_not_split(arguments)
    lm = load_lm(model, arguments, batch_size=batch_size, device=device)
    dataset = load_text(options, lm=lm)
    tokens, measure_answers = tokenize(lm, dataset).tokens, text_answers(lm, dataset)
    layout = find_attention_layout(lm.model)
    name = getattr(lm, "model_name", str(lm.pretrained))
    metadata = {**describe_model(lm.model, name, layout, site), **describe_data(dataset)}
    shared = self_check.load(lm.model, layout.decoder)
    if kind == "divergence":
        changed = load_text(options, lm=lm, change=context_change(NO_CONTEXT, options.seed))
        without = tokenize(lm, changed).tokens

        def read(sequences: list[list[int]], progress: Progress) -> NDArray[np.float32]:
            return capture(
                lm.model, sequences, site=site, batch_size=batch_size, layout=layout, forward=shared,
                progress=progress, processes=processes,
            )  # fmt: skip

        return AttributionJob(
            lambda progress: _divergence(
                read(tokens, progress), read(without, progress), dataset.groups.tolist(), metadata, processes
            ),
            2 * len(dataset),
            measure_answers,
        )
    return _job(
        kind, shared, layout, tokens, dataset, metadata, site, seeds, batch_size, processes, measure_answers
    )


def make_vlm_attribution(
    kind: AttributionKind,
    model: str,
    arguments: dict[str, Any],
    options: DataOptions,
    *,
    image: ImageCondition,
    file: AuthorsFile | None,
    site: Site,
    seeds: int,
    device: str | None,
    batch_size: int,
    processes: Processes = ONE_PROCESS,
) -> AttributionJob:
    """A vision-language model on tasks of either harness, or on the authors' file.

    Args:
        kind: What is measured.
        model: `vlm`, `gated_llava`, ...
        arguments: Its model_args.
        options: The documents.
        image: Which image the model gets.
        file: Instead of tasks.
        site: Where the gate will act.
        seeds: On how many splits a learned gate is fitted.
        device: Where the model goes.
        batch_size: Documents in a batch.
        processes: Those that run this together.
    """
    from truthgate_eval.harness.lmms_eval.probing import load_for_probing
    from truthgate_eval.vision import self_check as vision_self_check

    if kind == "copy":
        raise TaskError("--score copy looks for the answer's words in a text: use --model hf")
    dataset = load_vlm_dataset(options, image=image, file=file)
    chat = writes_chat_template(options, image=image, file=file)
    arguments, device = on_own_device(arguments, device, processes)
    vlm = load_for_probing(model, arguments, device=device, chat=chat)
    measure_answers = image_answers(vlm, dataset)
    layout = find_attention_layout(vlm.model)
    metadata = {**describe_model(vlm.model, vlm.name, layout, site), **describe_data(dataset)}
    if kind == "divergence":
        if image != DOCUMENT:
            raise TaskError(f"--image {image} shows no image that --score divergence could take away")
        without = apply_image_condition(dataset, NONE)

        def read(chosen: ProbeDataset, progress: Progress) -> NDArray[np.float32]:
            return capture_with_images(
                vlm, chosen, site=site, batch_size=batch_size, layout=layout, progress=progress,
                processes=processes,
            )  # fmt: skip

        return AttributionJob(
            lambda progress: _divergence(
                read(dataset, progress), read(without, progress), _clusters(dataset), metadata, processes
            ),
            2 * len(dataset),
            measure_answers,
        )
    shared, tokens = tokenize_with_images(vision_self_check.load(vlm, layout.decoder), dataset)
    return _job(
        kind, shared, layout, tokens, dataset, metadata, site, seeds, batch_size, processes, measure_answers
    )


def _divergence(
    with_context: NDArray[np.float32],
    without: NDArray[np.float32],
    clusters: Sequence[object],
    metadata: Mapping[str, Any],
    processes: Processes,
) -> TruthScores:
    return processes.on_main(lambda: run.run_divergence(with_context, without, clusters, metadata))


def _job(
    kind: AttributionKind,
    model: SharedPrefixModel,
    layout: AttentionLayout,
    tokens: Sequence[Sequence[int]],
    dataset: ProbeDataset,
    metadata: Mapping[str, Any],
    site: Site,
    seeds: int,
    batch_size: int,
    processes: Processes,
    measure_answers: Callable[[int], dict[str, Any]],
) -> AttributionJob:
    answers = answer_set(tokens, dataset)
    own: dict[str, Any] = {"site": site, "batch_size": batch_size, "processes": processes}
    total: int | None = len(answers.documents)
    if kind == "gradient":
        measure: Callable[..., TruthScores] = run.run_gradient
    elif kind == "direct-effect":
        measure = run.run_direct_effect
    elif kind == "copy":
        measure, own = run.run_copying, {"processes": processes}
    else:
        measure, own, total = run.run_learned, {"site": site, "seeds": seeds}, None
    return AttributionJob(
        lambda progress: measure(model, layout, answers, metadata, progress=progress, **own),
        total,
        measure_answers,
    )


def answer_set(tokens: Sequence[Sequence[int]], dataset: ProbeDataset) -> run.AnswerSet:
    """The documents of a data set, balanced by their right answer where all answers are yes or no.

    Args:
        tokens: Token ids of each sequence.
        dataset: The sequences.
    """
    documents = answer_documents(tokens, dataset.labels, dataset.groups)
    parsed = [parse_yes_no(example.answer) for example in dataset.examples]
    right = {
        example.group: answer
        for example, answer in zip(dataset.examples, parsed, strict=True)
        if example.truthful
    }
    is_yes_no = all(
        answer is not None and example.answer.strip(" .").lower() == answer
        for example, answer in zip(dataset.examples, parsed, strict=True)
    )
    cluster = dict(zip(dataset.groups.tolist(), _clusters(dataset), strict=True))
    return run.AnswerSet(
        documents,
        [right[document.group] if is_yes_no else None for document in documents],
        [cluster[document.group] for document in documents],
    )


def _clusters(dataset: ProbeDataset) -> list[object]:
    """For each answer what it shares with others: a named cluster, its image, or its question."""
    return [
        next(name for name in (example.cluster, example.image_key, example.group) if name is not None)
        for example in dataset.examples
    ]
