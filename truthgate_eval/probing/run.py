"""One probing run: from a model and its sequences to a score artifact."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from truthgate_eval.errors import ProbeError
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.inference import self_check
from truthgate_eval.probing.activations import allocate_activations
from truthgate_eval.probing.artifact import describe_model, make_artifact
from truthgate_eval.probing.capture import autocast, capture
from truthgate_eval.probing.capture_store import CaptureStore
from truthgate_eval.probing.config import CONTEXT_GAIN, NO_CONTEXT, SHUFFLED, CaptureConfig, ProbeConfig
from truthgate_eval.probing.controls import Control, shuffled_labels
from truthgate_eval.probing.cross_validation import Progress
from truthgate_eval.probing.dataset import ProbeDataset, TokenizedDataset
from truthgate_eval.probing.directions import class_mean_difference, deviation_along
from truthgate_eval.probing.image_capture import capture_with_images
from truthgate_eval.probing.repeated_cv import RepeatedCV, repeat_cross_validation
from truthgate_eval.probing.shared_capture import Allocate
from truthgate_eval.processes import ONE_PROCESS, Processes
from truthgate_eval.vision.model import VisionLanguageModel
from truthgate_eval.vision.self_check import load_question_engine

Dataset = TypeVar("Dataset", TokenizedDataset, ProbeDataset)


def run_probing(
    model: Any,
    sequences: TokenizedDataset,
    config: ProbeConfig | None = None,
    *,
    name: str,
    mixed_precision_dtype: torch.dtype | None = None,
    capture_config: CaptureConfig | None = None,
    controls: Sequence[Control] = (),
    capture_progress: Progress | None = None,
    probe_progress: Progress | None = None,
    processes: Processes = ONE_PROCESS,
    store: CaptureStore | None = None,
) -> TruthScores:
    """Truth scores of every head of a text model (`docs/method.md#truth-scores`).

    Args:
        model: A transformers model without a gate.
        sequences: What to probe it on.
        config: How probes are fitted and scored.
        name: The model's id, for the artifact.
        mixed_precision_dtype: What the model computes in under autocast, if it answers in it (`capture`).
        capture_config: Where activations are read, in which batches.
        controls: What else to probe, with the same solver and folds (`make_controls`).
        capture_progress: Called with the number of sequences that were run since the last call.
        probe_progress: Called with the number of heads that were fitted since the last call.
        processes: Those that call this together (`Processes.together`), each with the whole data set: they
            share the sequences, the first fits the probes, and all get the scores.
        store: Where finished activations are kept, so that a killed run continues. Remove it when the scores
            are saved.

    Example:
        With the model and the tokenizer of lm-eval's `hf`:

            from truthgate_eval import ProbeConfig, run_probing
            from truthgate_eval.harness.lm_eval.probing import load_lm, load_tokenized

            lm = load_lm("hf", {"pretrained": "Qwen/Qwen2.5-7B"}, batch_size=8, device="cuda")
            sequences = load_tokenized(lm, ["probe_halueval_qa"], limit=292)
            scores = run_probing(lm.model, sequences, ProbeConfig(folds=1), name="Qwen/Qwen2.5-7B")
            scores.save("qwen.npz")
    """
    settings = capture_config or CaptureConfig()
    layout = find_attention_layout(model)
    # Checked once, however many controls are captured.
    with autocast(model, mixed_precision_dtype):
        forward = self_check.load(model, layout.decoder)
    metadata = describe_model(model, name, layout, settings.site)
    if mixed_precision_dtype is not None:
        metadata["mixed_precision_dtype"] = str(mixed_precision_dtype).removeprefix("torch.")

    def run(dataset: TokenizedDataset) -> NDArray[np.float32]:
        return capture(
            model,
            dataset.tokens,
            site=settings.site,
            batch_size=settings.batch_size,
            layout=layout,
            forward=forward,
            mixed_precision_dtype=mixed_precision_dtype,
            progress=capture_progress,
            allocate=_allocate(settings),
            processes=processes,
            store=store,
        )

    return score_activations(
        run,
        sequences,
        config,
        model_metadata=metadata,
        controls=controls,
        progress=probe_progress,
        processes=processes,
    )


def run_image_probing(
    vlm: VisionLanguageModel,
    dataset: ProbeDataset,
    config: ProbeConfig | None = None,
    *,
    capture_config: CaptureConfig | None = None,
    controls: Sequence[Control] = (),
    capture_progress: Progress | None = None,
    probe_progress: Progress | None = None,
    processes: Processes = ONE_PROCESS,
    store: CaptureStore | None = None,
) -> TruthScores:
    """Truth scores of every head of a vision-language model's text decoder.

    Args:
        vlm: The model, without a gate. Its chat template writes the sequences.
        dataset: Answers with their images (see `apply_image_condition`).
        config: As in `run_probing`.
        capture_config: As in `run_probing`; `batch_size` is a number of sequences and cannot be `auto`.
        controls: As in `run_probing`.
        capture_progress: As in `run_probing`.
        probe_progress: As in `run_probing`.
        processes: As in `run_probing`.
        store: As in `run_probing`.
    """
    settings = capture_config or CaptureConfig()
    layout = find_attention_layout(vlm.model)
    batch_size = settings.batch_size
    if batch_size == "auto":
        raise ProbeError("batch_size=auto is for text models: give a number of sequences")
    engine = load_question_engine(vlm)

    def run(chosen: ProbeDataset) -> NDArray[np.float32]:
        return capture_with_images(
            vlm,
            chosen,
            site=settings.site,
            batch_size=batch_size,
            layout=layout,
            engine=engine,
            progress=capture_progress,
            allocate=_allocate(settings),
            processes=processes,
            store=store,
        )

    return score_activations(
        run,
        dataset,
        config,
        model_metadata=describe_model(vlm.model, vlm.name, layout, settings.site),
        controls=controls,
        progress=probe_progress,
        processes=processes,
    )


def _allocate(settings: CaptureConfig) -> Allocate:
    return functools.partial(allocate_activations, memory=settings.memory, folder=settings.scratch)


def score_activations(
    run: Callable[[Dataset], NDArray[Any]],
    dataset: Dataset,
    config: ProbeConfig | None = None,
    *,
    model_metadata: dict[str, Any],
    controls: Sequence[Control] = (),
    progress: Progress | None = None,
    processes: Processes = ONE_PROCESS,
) -> TruthScores:
    """Capture the activations of the sequences and of the controls, and cross-validate all heads' probes.

    Args:
        run: Returns activations [n, layers, heads, width] of a data set.
        dataset: What to probe on.
        config: How probes are fitted and scored.
        model_metadata: What the artifact says of the model.
        controls: What else to probe, with the same solver and folds.
        progress: Called with the number of heads that were fitted since the last call.
        processes: As in `run_probing`; in processes other than the first, what `run` returns is not read.

    Raises:
        ProbeError: The score `context-gain` without the control `no-context`, or data that cannot be probed.
    """
    config = config or ProbeConfig()
    if config.score == CONTEXT_GAIN and NO_CONTEXT not in {control.name for control in controls}:
        raise ProbeError(f"score={CONTEXT_GAIN} is measured against the control {NO_CONTEXT}: add it")
    if not processes.is_main:
        for sequences in (dataset, *_captured(controls)):
            run(sequences)
        return processes.from_main(None)
    own, of_controls, activations = _cross_validate(run, dataset, controls, config, progress)
    artifact = make_artifact(own, of_controls, dataset, controls, config, model_metadata=model_metadata)
    # Only what enters W_o can be shifted head by head.
    if model_metadata.get("site") == "pre":
        artifact = _with_directions(artifact, activations, dataset)
    return processes.from_main(artifact)


def _captured(controls: Sequence[Control]) -> list[Any]:
    """The sequences of the controls that have some, in the order in which `_cross_validate` captures them."""
    return [
        control.sequences
        for control in controls
        if control.features is None and control.sequences is not None
    ]


def _with_directions(artifact: TruthScores, activations: NDArray[Any], dataset: Dataset) -> TruthScores:
    """The artifact with what `action=shift` needs."""
    assert artifact.probe_weight is not None
    means = class_mean_difference(activations, dataset.labels)
    return dataclasses.replace(
        artifact,
        activation_std=deviation_along(activations, artifact.probe_weight),
        mean_difference=means,
        mean_difference_std=deviation_along(activations, means),
    )


def _cross_validate(
    run: Callable[[Dataset], NDArray[Any]],
    dataset: Dataset,
    controls: Sequence[Control],
    config: ProbeConfig,
    progress: Progress | None,
) -> tuple[RepeatedCV, dict[str, RepeatedCV], NDArray[Any]]:
    """The results of the sequences themselves, of each control by its name, and the activations."""

    def fit(activations: NDArray[Any], *label_sets: list[NDArray[np.int64]]) -> list[RepeatedCV]:
        return repeat_cross_validation(
            activations, *label_sets, groups=dataset.groups, config=config, progress=progress
        )

    labels = [dataset.labels] * config.seeds
    # Shuffled labels need the same activations: fitted together, both read the activations once.
    shuffled = [control.name for control in controls if control.name == SHUFFLED]
    seeds = range(config.seed, config.seed + config.seeds)
    shuffles = [shuffled_labels(dataset.labels, dataset.groups, seed) for seed in seeds]
    activations = run(dataset)
    own, *others = fit(activations, labels, *(shuffles for _ in shuffled))
    results = dict(zip(shuffled, others, strict=True))
    for control in controls:
        if control.features is not None:  # as one layer with one head
            (results[control.name],) = fit(control.features[:, None, None, :], labels)
        elif control.sequences is not None:
            (results[control.name],) = fit(run(control.sequences), labels)  # type: ignore[arg-type]
    return own, {control.name: results[control.name] for control in controls}, activations
