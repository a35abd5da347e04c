"""The `scores=` argument: truth scores, shuffled ones, a random gate's seed, or none."""

from __future__ import annotations

import re
from pathlib import Path

from truthgate_eval.errors import GateError
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.gating.shuffle import parse_shuffled, shuffle_within_layers


def load_source(scores: object) -> tuple[TruthScores | None, int | None]:
    """What a gate is made of.

    Args:
        scores: A file, a shipped artifact's name, `hf://...`, `shuffled:FILE:SEED`, `random:SEED`, `none`, or
            `TruthScores`.

    Returns:
        (scores, None), (None, seed of a random gate), or (None, None) for the vanilla model.

    Raises:
        GateError: A random gate has no seed.
        ScoresError: The scores cannot be read.

    Example:
        >>> load_source("random:7"), load_source("none")
        ((None, 7), (None, None))
    """
    if isinstance(scores, TruthScores):
        return scores, None
    shuffled = parse_shuffled(str(scores))
    if shuffled is not None:
        return shuffle_within_layers(TruthScores.resolve(shuffled[0]), shuffled[1]), None
    name = "none" if scores is None else str(scores)
    if name.lower() == "none":
        return None, None
    if name == "random" or name.startswith("random:"):
        seed = name.removeprefix("random").removeprefix(":")
        if not re.fullmatch(r"[0-9]+", seed):
            raise GateError(f"scores={name}: a random gate needs a seed, as in scores=random:1")
        return None, int(seed)
    if re.fullmatch(r"random[0-9]+", name) and not Path(name).exists():
        raise GateError(
            f"scores={name}: write the random gate as scores=random:{name.removeprefix('random')}"
        )
    return TruthScores.resolve(name), None


def source_name(scores: object) -> str:
    """The `scores=` argument for a results file."""
    return "in-memory scores" if isinstance(scores, TruthScores) else str(scores)
