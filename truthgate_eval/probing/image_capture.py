"""Every head's activation at the answer's last token, for sequences with pictures.

What `capture` does for texts. The whole model runs, since its vision tower makes the pictures'
tokens; the positions are found after that expansion.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from truthgate_eval.gating.attention_layout import AttentionLayout, find_attention_layout
from truthgate_eval.probing.activations import ActivationWriter
from truthgate_eval.probing.capture import LastTokenHooks
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample
from truthgate_eval.probing.image_conditions import write_prompt
from truthgate_eval.vision.model import VisionLanguageModel

log = logging.getLogger(__name__)


def capture_with_images(
    vlm: VisionLanguageModel,
    answers: ProbeDataset,
    *,
    site: str = "post",
    batch_size: int = 8,
    anatomy: AttentionLayout | None = None,
    progress: Callable[[int], None] | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Activations at the last token of every sequence.

    Pictures are decoded batch by batch. A batch that does not fit in memory is halved and tried again.

    Args:
        vlm: The model, without a gate.
        answers: Each with its pictures (see `apply_image_condition`).
        site: `post` reads the attention output projection's output, `pre` its input.
        batch_size: Sequences to a batch.
        anatomy: The model's anatomy, if it is known already.
        progress: Called with the number of sequences done since the last call.
        out: Where to write, as in `capture`.

    Returns:
        float32 [n, layers, heads, width], in the order of `answers`; `out` if it was given.

    Raises:
        DataError: A picture cannot be read; the message names its document.
    """
    anatomy = anatomy or find_attention_layout(vlm.model)
    items = answers.examples
    shape = (len(items), anatomy.num_layers, anatomy.num_heads, anatomy.head_width(site))
    result = np.empty(shape, dtype=np.float32) if out is None else out
    writer = ActivationWriter(result)
    order = sorted(range(len(items)), key=lambda i: -len(items[i].context + items[i].answer))
    done = 0
    while done < len(order):
        batch = order[done : done + batch_size]
        shown = [_decode(items[i]) for i in batch]
        texts = [
            write_prompt(vlm, items[i], len(some), bare=answers.bare_questions)
            for i, some in zip(batch, shown, strict=True)
        ]
        try:
            inputs, last = vlm.prepare_scoring(texts, shown)
            with LastTokenHooks(anatomy, last, site) as kept:
                vlm.run(inputs)
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size //= 2
            torch.cuda.empty_cache()
            log.warning("out of memory: going on with batches of %d", batch_size)
            continue
        writer.put(batch, kept.stacked().reshape(len(batch), *shape[1:]))
        done += len(batch)
        if progress is not None:
            progress(len(batch))
    writer.drop()
    return result


def _decode(item: ProbeExample) -> Sequence[Any]:
    return item.load_images() if item.load_images is not None else []
