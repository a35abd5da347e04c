"""Every head's activation at the answer's last token, for sequences with images.

What `capture` does for texts. Here the whole model runs, since its vision tower makes the image tokens.
The position of the answer's last token is found after placeholders have become image tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from PIL.Image import Image

from truthgate_eval.errors import ModelError, TruthGateError, reason_of, shorten
from truthgate_eval.gating.attention_layout import AttentionLayout, Site, find_attention_layout
from truthgate_eval.memory import is_out_of_memory
from truthgate_eval.probing.capture import LastTokenHooks
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample
from truthgate_eval.probing.image_conditions import write_sequence
from truthgate_eval.probing.shared_capture import Allocate, SharedCapture, allocate_in_memory
from truthgate_eval.processes import ONE_PROCESS, Processes
from truthgate_eval.vision.model import VisionLanguageModel

log = logging.getLogger(__name__)


def capture_with_images(
    vlm: VisionLanguageModel,
    dataset: ProbeDataset,
    *,
    site: Site = "post",
    batch_size: int = 8,
    layout: AttentionLayout | None = None,
    progress: Callable[[int], None] | None = None,
    allocate: Allocate = allocate_in_memory,
    processes: Processes = ONE_PROCESS,
) -> NDArray[np.float32]:
    """Activations at the last token of every sequence.

    Images are decoded batch by batch. A batch that fails, as where memory ends, is halved and tried again.
    Several processes make the batches of one, and take turns at them.

    Args:
        vlm: The model, without a gate.
        dataset: Answers with their images (see `apply_image_condition`).
        site: `post` reads the attention output projection's output, `pre` its input.
        batch_size: Sequences in a batch.
        layout: The model's attention layout, if it is known already.
        progress: Called with the number of sequences that were run since the last call.
        allocate: As in `capture`.
        processes: As in `capture`.

    Returns:
        float32 [n, layers, heads, width], in the order of the data set; in a process other than the first,
        only the rows of the sequences that it ran.

    Raises:
        DataError: An image cannot be read; the message names its document.
        ModelError: The model fails on a sequence by itself; the message has its question.
        ProcessError: Another process has failed.
    """
    layout = layout or find_attention_layout(vlm.model)
    examples = dataset.examples
    shape = (len(examples), layout.num_layers, layout.num_heads, layout.head_width(site))
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i].context + examples[i].answer))
    waiting = _parts(order, batch_size)[processes.rank :: processes.count]
    found = SharedCapture(
        shape, [i for batch in waiting for i in batch],
        allocate=allocate, processes=processes, progress=progress,
    )  # fmt: skip
    while waiting:
        batch = waiting.pop(0)
        if len(batch) > batch_size:
            waiting = _parts(batch, batch_size) + waiting
            continue
        images = [_load_images(examples[i]) for i in batch]
        sequences = [
            write_sequence(vlm, examples[i], len(own), bare_question=dataset.bare_questions)
            for i, own in zip(batch, images, strict=True)
        ]
        try:
            activations = _last_tokens(vlm, layout, sequences, images, site)
        except TruthGateError:
            raise
        except Exception as error:  # processors and models fail in many ways, and some only on a batch
            if len(batch) == 1:
                where = shorten(examples[batch[0]].context)
                raise ModelError(f"{vlm.name} fails on the question {where}: {reason_of(error)}") from error
            batch_size = len(batch) // 2
            if is_out_of_memory(error):
                torch.cuda.empty_cache()
            log.warning("%s: continuing with batches of %d", reason_of(error), batch_size)
            waiting.insert(0, batch)
            continue
        found.put(batch, activations)
    return found.gather()


def _parts(indices: list[int], size: int) -> list[list[int]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def _last_tokens(
    vlm: VisionLanguageModel,
    layout: AttentionLayout,
    sequences: Sequence[tuple[str, str]],
    images: Sequence[Sequence[Image]],
    site: Site,
) -> NDArray[np.float32]:
    """[sequences, layers, heads, width] at the last token of each answer."""
    prompts, answers = zip(*sequences, strict=True)
    inputs, last = vlm.prepare_scoring(prompts, answers, images)
    length = inputs["input_ids"].shape[1]
    # See `LastTokenHooks`: a pass that does not end leaves PEFT's wrapper in a wrong state.
    stop = not isinstance(vlm.model, PeftModel)
    with LastTokenHooks(layout, last, site, length, stop=stop) as kept:
        vlm.run(inputs)
    return kept.stacked()


def _load_images(example: ProbeExample) -> Sequence[Image]:
    return example.load_images() if example.load_images is not None else []
