"""Whether an artifact's scores are above chance, by its own standard errors and controls."""

from __future__ import annotations

import numpy as np

from truthgate_eval.gating.scores import TruthScores

_STANDARD_ERRORS = 2.0
_SHUFFLED = "shuffled-labels"


def chance_warning(scores: TruthScores) -> str | None:
    """One sentence where the mean over heads is not above chance by two standard errors; else None.

    Chance is the share of the more frequent label for an accuracy, and 0.5 for an AUROC. The error of the
    mean is at most the mean of the heads' standard errors, which counts here.

    Args:
        scores: An artifact. Of other kinds of scores than these two, and of scores without standard errors,
            nothing is said.
    """
    kind = scores.metadata.get("kind", scores.metadata.get("score"))
    if kind not in ("accuracy", "auroc") or scores.stderr is None or not np.isfinite(scores.stderr).all():
        return None
    balance = scores.metadata.get("probe", {}).get("class_balance", 0.5)
    chance = max(balance, 1 - balance) if kind == "accuracy" else 0.5
    mean, error = float(scores.scores.mean()), float(scores.stderr.mean())
    if mean > chance + _STANDARD_ERRORS * error:
        return None
    below = mean < chance - _STANDARD_ERRORS * error
    where = "below" if below else "not above"
    found = f"the mean score is {where} chance: {mean:.3f} ± {error:.3f} against {chance:.2g}"
    if _SHUFFLED in scores.controls:
        found += f", with shuffled labels {float(scores.controls[_SHUFFLED].mean()):.3f}"
    if below:
        found += (
            ". A probe that finds nothing falls under it: of a question's two answers, the one that is more "
            "often right where it was fitted is less often right in the fold that was left out"
        )
    above = _heads_above(scores, chance)
    if above:
        found += f". {above} of {scores.scores.size} heads are above it, corrected for their number"
    return found


def _heads_above(scores: TruthScores, chance: float) -> int:
    """How many heads are above chance after Bonferroni's correction, one-sided at 5 %."""
    from scipy.stats import norm

    assert scores.stderr is not None
    margin = norm.isf(0.05 / scores.scores.size) * scores.stderr
    return int((scores.scores > chance + margin).sum())
