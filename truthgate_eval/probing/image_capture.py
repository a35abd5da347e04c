"""Every head's activation at the answer's last token, for sequences with images.

What `capture` does for texts. An image is decoded once and goes through the vision tower once, and the tokens
that sequences have in common run once (`image_windows`). Where a model cannot do that, and for sequences that
cannot be written so, the whole model runs on each sequence: there the position of the answer's last token is
found after placeholders have become image tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.gating.attention_layout import AttentionLayout, Site, find_attention_layout
from truthgate_eval.probing.capture_key import capture_settings, texts_digest
from truthgate_eval.probing.capture_store import CaptureStore
from truthgate_eval.probing.dataset import ProbeDataset
from truthgate_eval.probing.image_windows import ImageWindows, load_images, split_into_windows
from truthgate_eval.probing.kept_batches import KeptBatches
from truthgate_eval.probing.shared_capture import Allocate, SharedCapture, allocate_in_memory
from truthgate_eval.processes import ONE_PROCESS, Processes
from truthgate_eval.vision.model import VisionLanguageModel
from truthgate_eval.vision.question_engine import ImageQuestionEngine
from truthgate_eval.vision.self_check import load_question_engine

__all__ = ["capture_with_images", "load_images"]


def capture_with_images(
    vlm: VisionLanguageModel,
    dataset: ProbeDataset,
    *,
    site: Site = "post",
    batch_size: int = 8,
    layout: AttentionLayout | None = None,
    engine: ImageQuestionEngine | Literal["auto"] | None = "auto",
    progress: Callable[[int], None] | None = None,
    allocate: Allocate = allocate_in_memory,
    processes: Processes = ONE_PROCESS,
    store: CaptureStore | None = None,
) -> NDArray[np.float32]:
    """Activations at the last token of every sequence.

    The sequences run in windows: all those about a few images, which are decoded when their window begins.
    Answers with an equal `image_key` are about one image. A batch that fails, as where memory ends, is halved
    and tried again. Several processes make the windows of one, and take turns at them.

    Args:
        vlm: The model, without a gate.
        dataset: Answers with their images (see `apply_image_condition`).
        site: `post` reads the attention output projection's output, `pre` its input.
        batch_size: Images in a window. A batch has as many tokens as that many of its longest sequences, and
            on a CPU no more than fit in the cache.
        layout: The model's attention layout, if it is known already.
        engine: The model with shared prefixes, which keeps images' features, if it has been checked already;
            None for the model's own path, and `auto` for whichever it can take.
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
    engine = load_question_engine(vlm) if engine == "auto" else engine
    examples = dataset.examples
    shape = (len(examples), layout.num_layers, layout.num_heads, layout.head_width(site))
    windows = split_into_windows(examples, batch_size)
    own = windows[processes.rank :: processes.count]
    found = SharedCapture(
        shape, [i for window in own for i in window],
        allocate=allocate, processes=processes, progress=progress,
    )  # fmt: skip
    kept = KeptBatches(
        store, found, own, lambda: capture_settings(
            vlm.model, vlm.device, inputs=texts_digest(dataset), batches=windows, shape=shape, site=site,
            batch_size=batch_size, sharing=engine is not None,
        ), processes,
    )  # fmt: skip
    run = ImageWindows(vlm, dataset, layout, site, engine, batch_size, found)
    for number, window in enumerate(own):
        limit = kept.take(number, functools.partial(run.content, window))
        if limit is not None:
            run.continue_with(limit)
            continue
        run.capture(window)
        kept.add(number, run.limit, run.content(window) if kept.is_on else "")
    kept.finish()
    run.log_own_path()
    return found.gather()
