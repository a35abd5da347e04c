"""How much attention a head pays to the context's copy of the token that is being written.

The soft form of a retrieval head's score (Wu et al. 2024): at each token of the right answer that the context
contains, the share of the head's attention that lands on those copies. It needs attention weights, which only
eager attention returns, so sequences run one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from truthgate_eval.attribution.log_odds import AnswerDocument
from truthgate_eval.errors import ProbeError
from truthgate_eval.gating.attention_layout import AttentionLayout
from truthgate_eval.processes import ONE_PROCESS, Processes


def copy_scores(
    model: Any,
    layout: AttentionLayout,
    documents: Sequence[AnswerDocument],
    *,
    progress: Callable[[int], object] = lambda _: None,
    processes: Processes = ONE_PROCESS,
) -> tuple[NDArray[np.float32], list[int]]:
    """Attention on copies, for each document whose right answer has a token that the context contains.

    Args:
        model: A text model of transformers, without a gate.
        layout: Its attention heads.
        documents: Questions with right and wrong answers.
        progress: Called with the number of documents done since the last call.
        processes: Those that call this with the same documents, and take turns at them.

    Returns:
        float32 [found, layers, heads], complete in the first process only; and the indices of these
        documents.

    Raises:
        ProbeError: No right answer has a token that its context contains, or the model returns no weights.
        ProcessError: Another process has failed.
    """
    scores = np.zeros((len(documents), *layout.shape), dtype=np.float32)
    own: list[int] = []
    with _eager(model), torch.no_grad():
        for index in range(processes.rank, len(documents), processes.count):
            document = documents[index]
            sequence = next(s for s, own in zip(document.sequences, document.truthful, strict=True) if own)
            copies = _copies(sequence, document.context_length)
            if copies:
                scores[index] = _attention_on(model, layout, sequence, copies)
                own.append(index)
            progress(1)
    found = processes.gather_rows(own, scores[own], scores.__setitem__)
    if not found:
        raise ProbeError("no right answer has a token that its context contains: there is nothing to copy")
    return scores[found], found


def _copies(sequence: Sequence[int], start: int) -> dict[int, list[int]]:
    """For each position that writes an answer token, the context's positions of that token."""
    found = {
        position - 1: [i for i in range(start) if sequence[i] == sequence[position]]
        for position in range(start, len(sequence))
    }
    return {position: copies for position, copies in found.items() if copies}


def _attention_on(
    model: Any, layout: AttentionLayout, sequence: Sequence[int], copies: dict[int, list[int]]
) -> NDArray[np.float32]:
    """Mean share of attention on the copies, float32 [layers, heads]."""
    device = next(layout.decoder.parameters()).device
    output = layout.decoder(
        input_ids=torch.tensor([sequence], device=device), use_cache=False, output_attentions=True
    )
    weights = output.attentions
    if weights is None or any(weights[number] is None for number in layout.layer_numbers):
        raise ProbeError(f"{type(model).__name__} returns no attention weights: copy scores need them")
    return np.stack(
        [
            torch.stack(
                [weights[number][0, :, position, own].float().sum(-1) for position, own in copies.items()]
            )
            .mean(0)
            .cpu()
            .numpy()
            for number in layout.layer_numbers
        ]
    )


@contextmanager
def _eager(model: Any) -> Iterator[None]:
    """Run a model with eager attention, the only one that returns its weights."""
    before = model.config.get_text_config(decoder=True)._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
