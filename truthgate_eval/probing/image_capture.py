"""Every head's activation at the answer's last token, for sequences with images.

What `capture` does for texts. Here the whole model runs, since its vision tower makes the image tokens.
The position of the answer's last token is found after placeholders have become image tokens.
"""

from __future__ import annotations

import functools
import hashlib
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
from truthgate_eval.probing.capture_key import capture_settings, texts_digest
from truthgate_eval.probing.capture_store import CaptureStore
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample
from truthgate_eval.probing.image_conditions import write_sequence
from truthgate_eval.probing.kept_batches import KeptBatches
from truthgate_eval.probing.shared_capture import Allocate, SharedCapture, allocate_in_memory
from truthgate_eval.processes import ONE_PROCESS, Processes
from truthgate_eval.vision.image_features import image_key
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
    store: CaptureStore | None = None,
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
        store: As in `capture`.

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
    batches = _parts(order, batch_size)
    own = batches[processes.rank :: processes.count]
    found = SharedCapture(
        shape, [i for batch in own for i in batch],
        allocate=allocate, processes=processes, progress=progress,
    )  # fmt: skip
    kept = KeptBatches(
        store, found, own,
        lambda: capture_settings(
            vlm.model, vlm.device, inputs=texts_digest(dataset), batches=batches, shape=shape, site=site
        ),
        processes,
    )  # fmt: skip
    for number, batch in enumerate(own):
        limit = kept.take(number, functools.partial(_content, examples, batch))
        if limit is not None:
            batch_size = limit
            continue
        shown = hashlib.sha256() if kept.is_on else None
        batch_size = _run_batch(vlm, dataset, layout, site, batch, batch_size, found, shown)
        kept.add(number, batch_size, "" if shown is None else shown.hexdigest())
    kept.finish()
    return found.gather()


def _run_batch(
    vlm: VisionLanguageModel,
    dataset: ProbeDataset,
    layout: AttentionLayout,
    site: Site,
    batch: list[int],
    batch_size: int,
    found: SharedCapture,
    shown: hashlib._Hash | None,
) -> int:
    """Run a batch, in parts if it is too large, and add its images to a digest; the size that fitted."""
    examples, waiting = dataset.examples, _parts(batch, batch_size)
    while waiting:
        part = waiting.pop(0)
        if len(part) > batch_size:
            waiting = _parts(part, batch_size) + waiting
            continue
        images = [load_images(examples[i]) for i in part]
        sequences = [
            write_sequence(vlm, examples[i], len(own), bare_question=dataset.bare_questions)
            for i, own in zip(part, images, strict=True)
        ]
        try:
            activations = _last_tokens(vlm, layout, sequences, images, site)
        except TruthGateError:
            raise
        except Exception as error:  # processors and models fail in many ways, and some only on a batch
            if len(part) == 1:
                where = shorten(examples[part[0]].context)
                raise ModelError(f"{vlm.name} fails on the question {where}: {reason_of(error)}") from error
            batch_size = len(part) // 2
            if is_out_of_memory(error):
                torch.cuda.empty_cache()
            log.warning("%s: continuing with batches of %d", reason_of(error), batch_size)
            waiting.insert(0, part)
            continue
        found.put(part, activations)
        if shown is not None:
            _add_images(shown, images)
    return batch_size


def _content(examples: Sequence[ProbeExample], batch: Sequence[int]) -> str:
    """Digest of the images of a batch, read one by one."""
    digest = hashlib.sha256()
    for i in batch:
        _add_images(digest, [load_images(examples[i])])
    return digest.hexdigest()


def _add_images(digest: hashlib._Hash, images: Sequence[Sequence[Image]]) -> None:
    for own in images:
        digest.update(repr([image_key(image) for image in own]).encode())


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


def load_images(example: ProbeExample) -> Sequence[Image]:
    """An answer's images, decoded; none where it has none."""
    return example.load_images() if example.load_images is not None else []
