"""Shuffled scores: as strong a gate as the scores themselves, on heads that are chosen by chance."""

from __future__ import annotations

import re

import numpy as np

from truthgate_eval.errors import GateError
from truthgate_eval.gating.scores import TruthScores

_PREFIX = "shuffled:"
# Arrays that stay with their heads: only the choice of heads is left to chance.
_OF_HEADS = ("probe_weight", "activation_std", "mean_difference", "mean_difference_std")


def parse_shuffled(name: str) -> tuple[str, int] | None:
    """File and seed of `shuffled:FILE:SEED`; None for a name that does not begin so.

    Raises:
        GateError: The file or the seed is missing.

    Example:
        >>> parse_shuffled("shuffled:hf://owner/repo/a.npz:3"), parse_shuffled("a.npz")
        (('hf://owner/repo/a.npz', 3), None)
    """
    if not name.startswith(_PREFIX):
        return None
    match = re.fullmatch(r"(.+):([0-9]+)", name.removeprefix(_PREFIX))
    if match is None:
        raise GateError(f"scores={name}: shuffled scores need a file and a seed, as in shuffled:a.npz:1")
    return match[1], int(match[2])


def shuffle_within_layers(scores: TruthScores, seed: int) -> TruthScores:
    """The scores, permuted among the heads of each layer.

    Directions and the activations' standard deviations stay with their heads. Standard errors, controls and
    what else belongs to the unshuffled scores is left out.

    Args:
        scores: The truth scores.
        seed: Determines the permutations.
    """
    return TruthScores(
        np.random.default_rng(seed).permuted(scores.scores, axis=1),
        metadata={**scores.metadata, "shuffled_seed": seed},
        **{name: getattr(scores, name) for name in _OF_HEADS},
    )
