"""The jobs of `truthgate probe`: a loaded model, its sequences and their controls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from truthgate_eval.cli.probe_data import (
    AuthorsFile,
    DataOptions,
    are_text_tasks,
    check_not_split,
    load_text,
    load_text_for_vlm,
    load_vlm_dataset,
    on_own_device,
    writes_chat_template,
)
from truthgate_eval.errors import TaskError
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.cache_keys import model_fingerprint
from truthgate_eval.probing.capture_store import CaptureStore
from truthgate_eval.probing.config import (
    DOCUMENT,
    NO_CONTEXT,
    NONE,
    CaptureConfig,
    ControlName,
    ImageCondition,
    ProbeConfig,
)
from truthgate_eval.probing.controls import Control, context_change, make_controls, swap_images
from truthgate_eval.probing.cross_validation import Progress
from truthgate_eval.probing.dataset import ProbeDataset, TokenizedDataset
from truthgate_eval.probing.image_conditions import apply_image_condition
from truthgate_eval.probing.own_answers import measure_own_answers
from truthgate_eval.probing.run import run_image_probing, run_probing
from truthgate_eval.processes import ONE_PROCESS, Processes
from truthgate_eval.vision.model import VisionLanguageModel


class RunProbing(Protocol):
    """`run_probing` or `run_image_probing` of a model, its sequences and their controls."""

    def __call__(
        self,
        config: ProbeConfig,
        *,
        capture_config: CaptureConfig,
        capture_progress: Progress,
        probe_progress: Progress,
        store: CaptureStore,
    ) -> TruthScores:
        """The artifact."""


@dataclass(frozen=True)
class ProbeJob:
    """A probing run that needs only its configuration.

    Attributes:
        run: The run.
        num_sequences: How many sequences will run through the model.
        num_probes: How many probes each seed fits.
        measure_answers: What the model itself makes of the answers, see `probing.own_answers`; its argument
            is how many of them are in a batch.
        model_digest: SHA-256 of the model, and of what writes its inputs; takes a second for each 2 GB.
    """

    run: RunProbing
    num_sequences: int
    num_probes: int
    measure_answers: Callable[[int], dict[str, Any]]
    model_digest: Callable[[], str]


def make_lm_job(
    model: str,
    arguments: dict[str, Any],
    options: DataOptions,
    controls: Sequence[ControlName],
    *,
    device: str | None,
    batch_size: int,
    processes: Processes = ONE_PROCESS,
) -> ProbeJob:
    """A text model on lm-eval's tasks.

    Args:
        model: As on lm-eval's command line.
        arguments: Its model_args.
        options: What to probe on.
        controls: Names of the controls.
        device: As in lm-eval.
        batch_size: As in lm-eval.
        processes: Those that run this together.
    """
    from truthgate_eval.harness.lm_eval.probing import load_lm, tokenize

    check_not_split(arguments)
    lm = load_lm(model, arguments, batch_size=batch_size, device=device)
    dataset = load_text(options, lm=lm)

    def changed(name: ControlName) -> TokenizedDataset:
        return tokenize(lm, load_text(options, lm=lm, change=context_change(name, options.seed)))

    made = make_controls(controls, dataset, changed, seed=options.seed)
    name = getattr(lm, "model_name", str(lm.pretrained))
    run = partial(
        run_probing,
        lm.model,
        tokenize(lm, dataset),
        name=name,
        mixed_precision_dtype=lm.mixed_precision_dtype,
        controls=made,
        processes=processes,
    )
    digest = partial(model_fingerprint, lm.model, lm.tokenizer, {})
    return _job(run, lm.model, dataset, made, text_answers(lm, dataset), digest)


def make_vlm_job(
    model: str,
    arguments: dict[str, Any],
    options: DataOptions,
    controls: Sequence[ControlName],
    *,
    image: ImageCondition,
    file: AuthorsFile | None,
    device: str | None,
    processes: Processes = ONE_PROCESS,
) -> ProbeJob:
    """A vision-language model on tasks of either harness, or on the authors' file.

    Args:
        model: `vlm`, `gated_llava`, ...
        arguments: Its model_args.
        options: What to probe on.
        controls: Names of the controls.
        image: Which image the model gets.
        file: Instead of tasks.
        device: Where the model goes.
        processes: Those that run this together.
    """
    from truthgate_eval.harness.lmms_eval.probing import load_for_probing
    from truthgate_eval.harness.quiet import log_to_stderr

    log_to_stderr()  # lmms-eval has just been imported
    dataset = load_vlm_dataset(options, image=image, file=file)

    def changed(name: ControlName) -> ProbeDataset:
        if file is None and are_text_tasks(options, image):
            change = context_change(name, options.seed)
            return apply_image_condition(load_text_for_vlm(options, change=change), image)
        if image != DOCUMENT:
            raise TaskError(f"--image {image} shows no image that --control {name} could change")
        if name == NO_CONTEXT:
            return apply_image_condition(dataset, NONE)
        return swap_images(dataset, options.seed)

    made = make_controls(controls, dataset, changed, seed=options.seed)
    has_template = writes_chat_template(options, image=image, file=file)
    arguments, device = on_own_device(arguments, device, processes)
    vlm = load_for_probing(model, arguments, device=device, chat=has_template)
    run = partial(run_image_probing, vlm, dataset, controls=made, processes=processes)
    chat = {"template": vlm.chat.template, "system": vlm.chat.system}
    digest = partial(model_fingerprint, vlm.model, vlm.processor, chat)
    return _job(run, vlm.model, dataset, made, image_answers(vlm, dataset), digest)


def text_answers(lm: Any, dataset: ProbeDataset) -> Callable[[int], dict[str, Any]]:
    """`ProbeJob.measure_answers` of a model of lm-eval, whose batches are its own."""
    from truthgate_eval.harness.lm_eval.answer_reader import TextAnswerReader

    return lambda _batch_size: measure_own_answers(dataset, TextAnswerReader(lm))


def image_answers(vlm: VisionLanguageModel, dataset: ProbeDataset) -> Callable[[int], dict[str, Any]]:
    """`ProbeJob.measure_answers` of a vision-language model."""
    from truthgate_eval.harness.lmms_eval.answer_reader import ImageAnswerReader

    def measure(batch_size: int) -> dict[str, Any]:
        reader = ImageAnswerReader(vlm, bare_questions=dataset.bare_questions, batch_size=batch_size)
        return measure_own_answers(dataset, reader)

    return measure


def _job(
    run: RunProbing,
    model: Any,
    dataset: ProbeDataset,
    controls: list[Control],
    measure_answers: Callable[[int], dict[str, Any]],
    model_digest: Callable[[], str],
) -> ProbeJob:
    layers, heads = find_attention_layout(model).shape
    captures = 1 + sum(control.sequences is not None for control in controls)
    of_controls = sum(1 if control.features is not None else layers * heads for control in controls)
    num_probes = layers * heads + of_controls
    return ProbeJob(run, captures * len(dataset), num_probes, measure_answers, model_digest)
