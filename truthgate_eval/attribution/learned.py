"""The best gate of its shape for a task: one factor for each head, fitted by gradient descent.

It is a ceiling: what any score could reach with a soft gate. The factors minimise the mean log-loss of the
right answer against the wrong one on training documents, with a penalty on their distance from 1, and the
step with the lowest loss on held-out documents is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from truthgate_eval.attribution.log_odds import AnswerBatch, AnswerDocument, frozen, log_odds, make_batches
from truthgate_eval.errors import ProbeError
from truthgate_eval.gating.attention_layout import AttentionLayout, Site
from truthgate_eval.gating.head_factors import HeadFactors
from truthgate_eval.inference.shared_prefix import SharedPrefixModel


@dataclass(frozen=True)
class LearnedGateConfig:
    """How a gate is fitted.

    Attributes:
        lr: Adam's learning rate.
        penalty: Weight of the mean squared distance of the factors from 1.
        epochs: The most passes over the training documents.
        batch_size: Documents in a batch; one step of Adam each.
        patience: Epochs without a lower held-out loss after which fitting stops.
        seed: Of the order of the documents.

    Raises:
        ProbeError: A number is out of its range.
    """

    lr: float = 0.002
    penalty: float = 1.0
    epochs: int = 20
    batch_size: int = 8
    patience: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("lr", "epochs", "batch_size", "patience"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ProbeError(f"{name}={getattr(self, name)}: expected a positive number")
        if not (math.isfinite(self.penalty) and self.penalty >= 0):
            raise ProbeError(f"penalty={self.penalty}: expected a number, 0 or more")


@dataclass(frozen=True, eq=False)
class LearnedGate:
    """A fitted gate.

    Attributes:
        values: float32 [layers, heads]; the factors of the chosen step.
        curve: For each epoch, from before the first on: the held-out loss.
        training_curve: For each epoch after the first: the mean training loss, penalty left out.
        chosen: Index in `curve` of the epoch whose factors these are; 0 means that no epoch was better
            than no gate.
    """

    values: NDArray[np.float32]
    curve: list[float] = field(default_factory=list)
    training_curve: list[float] = field(default_factory=list)
    chosen: int = 0


def learn_gate(
    model: SharedPrefixModel,
    layout: AttentionLayout,
    training: Sequence[AnswerDocument],
    held_out: Sequence[AnswerDocument],
    *,
    config: LearnedGateConfig | None = None,
    site: Site = "post",
    weights: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> LearnedGate:
    """Fit a gate.

    Args:
        model: The model, without a gate.
        layout: Its attention heads.
        training: The documents it is fitted on.
        held_out: The documents that choose the epoch.
        config: How it is fitted.
        site: Where the gate acts.
        weights: Weights of the documents of both parts, adding up to 1; all equal by default.
        progress: Called with the number of documents done since the last call.

    Raises:
        ProbeError: A part has no documents.
    """
    config = config or LearnedGateConfig()
    if not training or not held_out:
        raise ProbeError("a learned gate needs documents to fit it on and others to stop at")
    own, other = weights or tuple(np.full(len(part), 1 / len(part)) for part in (training, held_out))
    rng = np.random.default_rng(config.seed)
    factors = torch.ones(layout.shape, requires_grad=True)
    optimizer = torch.optim.Adam([factors], lr=config.lr)
    differentiable = model.with_gradients()
    with frozen(model.model), HeadFactors(layout, site) as heads:
        heads.factors = factors

        def held_out_loss() -> float:
            with torch.no_grad():
                return sum(
                    float(_loss(model, batch, other))
                    for batch in _report(
                        make_batches(model, held_out, batch_size=config.batch_size), progress
                    )
                )

        best, curve, training_curve, chosen = np.ones(layout.shape, np.float32), [held_out_loss()], [], 0
        for epoch in range(1, config.epochs + 1):
            order = rng.permutation(len(training))
            total = 0.0
            for start in range(0, len(order), config.batch_size):
                indices = order[start : start + config.batch_size]
                documents = [training[i] for i in indices]
                (batch,) = make_batches(differentiable, documents, batch_size=len(documents))
                loss = _loss(differentiable, batch, own[indices])
                total += float(loss.detach())
                # A batch has its share of the penalty, so that an epoch has all of it.
                share = float(own[indices].sum())
                optimizer.zero_grad()
                (loss + share * config.penalty * ((factors - 1) ** 2).mean()).backward()
                optimizer.step()
                progress(len(documents))
            training_curve.append(total)
            curve.append(held_out_loss())
            if curve[-1] < curve[chosen]:
                best, chosen = factors.detach().numpy().copy(), epoch
            if epoch - chosen >= config.patience:
                break
    return LearnedGate(best, curve, training_curve, chosen)


def _loss(model: SharedPrefixModel, batch: AnswerBatch, weights: NDArray[np.float64]) -> torch.Tensor:
    """Weighted log-loss of the documents of a batch: the sum of w * log(1 + exp(-log-odds))."""
    odds = log_odds(model, batch)
    own = torch.tensor(weights[batch.indices], dtype=odds.dtype, device=odds.device)
    return (own * torch.nn.functional.softplus(-odds)).sum()


def _report(batches: Iterable[AnswerBatch], progress: Callable[[int], object]) -> Iterator[AnswerBatch]:
    for batch in batches:
        yield batch
        progress(len(batch.indices))
