"""The effect of every head's gate on the answer: the gradient of its log-odds at g = 1.

S[l, h] = mean over documents of d log-odds(right against wrong) / d g[l, h], where g multiplies the head's
output at the site that will be gated. One forward and one backward pass of each document give the effect of
all heads; the model's weights stay fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from truthgate_eval.attribution.log_odds import AnswerDocument, frozen, log_odds, make_batches
from truthgate_eval.gating.attention_layout import AttentionLayout, Site
from truthgate_eval.gating.head_factors import HeadFactors
from truthgate_eval.inference.shared_prefix import SharedPrefixModel
from truthgate_eval.processes import ONE_PROCESS, Processes


def gate_gradients(
    model: SharedPrefixModel,
    layout: AttentionLayout,
    documents: Sequence[AnswerDocument],
    *,
    site: Site = "post",
    batch_size: int = 8,
    progress: Callable[[int], object] = lambda _: None,
    processes: Processes = ONE_PROCESS,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Gradient of each document's log-odds with respect to the gate of each head, at g = 1.

    Args:
        model: The model, without a gate.
        layout: Its attention heads.
        documents: Questions with right and wrong answers.
        site: Where the gate acts.
        batch_size: Documents in a batch. A batch keeps the activations of all layers.
        progress: Called with the number of documents done since the last call.
        processes: Those that call this with the same documents, and take turns at the batches.

    Returns:
        float32 [documents, layers, heads], and each document's log-odds, float32 [documents]; complete in the
        first process only.

    Raises:
        ProcessError: Another process has failed.
    """
    gradients = np.zeros((len(documents), *layout.shape), dtype=np.float32)
    odds = np.zeros(len(documents), dtype=np.float32)
    done: list[int] = []
    differentiable = model.with_gradients()
    with frozen(model.model), HeadFactors(layout, site) as heads:
        turns = slice(processes.rank, None, processes.count)
        for batch in make_batches(differentiable, documents, batch_size=batch_size, part=turns):
            # One row of factors for each document, and one for padding.
            factors = torch.ones(len(batch.indices) + 1, *layout.shape, requires_grad=True)
            heads.factors, heads.owners = factors, batch.owners
            values = log_odds(differentiable, batch)
            values.sum().backward()
            assert factors.grad is not None
            gradients[batch.indices] = factors.grad[:-1].numpy()
            odds[batch.indices] = values.detach().cpu().numpy()
            done += batch.indices
            progress(len(batch.indices))
    processes.gather_rows(done, gradients[done], gradients.__setitem__)
    processes.gather_rows(done, odds[done], odds.__setitem__)
    return gradients, odds


def document_weights(strata: Iterable[object]) -> NDArray[np.float64]:
    """Weights [documents] under which every stratum counts the same; they add up to 1.

    For yes/no questions the strata are the right answers: the gradient of a "yes" offset then cancels.

    Args:
        strata: The stratum of each document.

    Example:
        >>> document_weights(["yes", "yes", "no"]).tolist()
        [0.25, 0.25, 0.5]
    """
    names, index, counts = np.unique(
        np.array([str(stratum) for stratum in strata]), return_inverse=True, return_counts=True
    )
    return 1.0 / (len(names) * counts[index])
