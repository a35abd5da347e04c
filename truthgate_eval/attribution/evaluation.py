"""What a gate does to a model's answers, document by document, and against the vanilla model.

The log-odds of the right answer against the wrong ones need no threshold and no parsing. For yes/no questions
they are also scored with the best constant added to the log-odds of yes: a gate that only says yes more often
gains nothing then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import t as student_t

from truthgate_eval.attribution.log_odds import AnswerDocument, log_odds, make_batches
from truthgate_eval.inference.shared_prefix import SharedPrefixModel
from truthgate_eval.probing.statistics import auroc, influence_stderr

# Of tests.
_LEVEL = 0.05


def measure_log_odds(
    model: SharedPrefixModel,
    documents: Sequence[AnswerDocument],
    *,
    batch_size: int = 8,
    progress: Callable[[int], object] = lambda _: None,
) -> NDArray[np.float64]:
    """Log-odds of each document's right answer against its wrong ones, float64 [documents].

    Args:
        model: The model; it may carry a gate.
        documents: Questions with right and wrong answers.
        batch_size: Documents in a batch.
        progress: Called with the number of documents done since the last call.
    """
    odds = np.empty(len(documents))
    with torch.no_grad():
        for batch in make_batches(model, documents, batch_size=batch_size):
            odds[batch.indices] = log_odds(model, batch).cpu().numpy()
            progress(len(batch.indices))
    return odds


@dataclass(frozen=True, eq=False)
class GateEvaluation:
    """Log-odds of some documents under one gate, and what is computed from them.

    Attributes:
        odds: float64 [documents]; log-odds of the right answer.
        strata: For each document `yes` or `no`, its right answer; or the same for all documents, where
            answers are free text.
        clusters: [documents]; what a document shares with others.
    """

    odds: NDArray[np.float64]
    strata: Sequence[object]
    clusters: Sequence[object]

    @property
    def is_yes_no(self) -> bool:
        """Whether the answers are yes and no, and both occur."""
        return set(self.strata) == {"yes", "no"}

    @property
    def _signs(self) -> NDArray[np.float64]:
        return np.array([1.0 if stratum == "yes" else -1.0 for stratum in self.strata])

    def with_offset(self, offset: float) -> GateEvaluation:
        """The same answers with a constant on the log-odds of yes; for yes/no questions."""
        return replace(self, odds=self.odds + self._signs * offset)

    def losses(self, *, with_offset: bool = False) -> NDArray[np.float64]:
        """Log-loss of each document, in nats; with the best constant on the log-odds of yes if asked."""
        odds = self.odds
        if with_offset and self.is_yes_no:
            signs = self._signs
            best = minimize_scalar(lambda offset: np.logaddexp(0, -(odds + signs * offset)).mean())
            odds = odds + signs * best.x
        return np.logaddexp(0, -odds)

    @property
    def right(self) -> NDArray[np.float64]:
        """1 where the right answer is the likelier one, [documents]."""
        return (self.odds > 0).astype(np.float64)

    @property
    def auroc(self) -> float | None:
        """Area under the ROC curve of the log-odds of yes; None for answers in free text."""
        if not self.is_yes_no:
            return None
        signs = self._signs
        return float(auroc((self.odds * signs)[None], (signs > 0).astype(np.int64))[0])

    def summary(self) -> dict[str, float | None]:
        """The figures of a table's row."""
        return {
            "log_loss": float(self.losses().mean()),
            "log_loss_offset": float(self.losses(with_offset=True).mean()) if self.is_yes_no else None,
            "accuracy": float(self.right.mean()),
            "auroc": self.auroc,
        }


@dataclass(frozen=True)
class PairedDifference:
    """A mean of paired differences, clustered.

    Attributes:
        mean: The mean.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p: Two-sided p-value of a mean of 0, from Student's t over clusters.
    """

    mean: float
    low: float
    high: float
    p: float

    def as_dict(self) -> dict[str, float]:
        """For a JSON file."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "p": self.p}


def paired_difference(
    values: NDArray[np.float64], baseline: NDArray[np.float64], clusters: Sequence[object]
) -> PairedDifference:
    """Mean of `values` - `baseline`, with a clustered standard error.

    Args:
        values: [documents].
        baseline: [documents], of the same documents.
        clusters: [documents].

    Example:
        >>> paired_difference(np.array([1.0, 2.0, 3.0]), np.zeros(3), [0, 1, 2]).mean
        2.0
    """
    difference = values - baseline
    names = [str(cluster) for cluster in clusters]
    mean = float(difference.mean())
    error = float(influence_stderr((difference - mean)[None] / len(difference), names)[0])
    degrees = max(len(set(names)) - 1, 1)
    reach = float(student_t.ppf(0.975, degrees)) * error
    p = 1.0 if error == 0 and mean == 0 else float(2 * student_t.sf(abs(mean) / max(error, 1e-300), degrees))
    return PairedDifference(mean, mean - reach, mean + reach, p)


def mean_odds_difference(
    evaluation: GateEvaluation, baseline: GateEvaluation, weights: NDArray[np.float64]
) -> PairedDifference:
    """By how much a gate raises the mean log-odds of the right answer.

    With equal weight for yes and no documents, as `AnswerSet.weights` has it, a constant on yes changes
    nothing. It is what `gradient` is the derivative of.

    Args:
        evaluation: With the gate.
        baseline: Without it, on the same documents.
        weights: [documents], adding up to 1.
    """
    scale = weights * len(weights)
    return paired_difference(evaluation.odds * scale, baseline.odds * scale, evaluation.clusters)


def conclusion(
    difference: PairedDifference,
    with_offset: PairedDifference | None,
    controls: Mapping[str, PairedDifference],
    *,
    corrected_p: float | None = None,
) -> str:
    """What a row of the table allows to say about a gate, in one sentence.

    Args:
        difference: Its log-loss less the vanilla model's.
        with_offset: The same with the best yes/no offset for both; None where answers are free text.
        controls: By its name, its log-loss less that of each control of equal strength (shuffled, random, a
            constant on yes); none for a control itself.
        corrected_p: P-value of `difference`, corrected for the other rows; None for no correction.

    Example:
        >>> better, unclear = PairedDifference(-2, -3, -1, 0.01), PairedDifference(0, -1, 1, 0.9)
        >>> conclusion(better, None, {"random 0": unclear, "yes offset up": better})
        'better than the vanilla model, but not than random 0 of equal strength'
    """
    uncertain = corrected_p is not None and not corrected_p < _LEVEL
    if difference.low > 0 and not uncertain:
        return "makes the answers worse"
    if not difference.high < 0 or uncertain:
        return "no difference from the vanilla model is seen"
    if with_offset is not None and not with_offset.high < 0:
        return "better than the vanilla model, but not once both have their best constant on yes"
    if not controls:
        return "better than the vanilla model"
    not_beaten = [name for name, control in controls.items() if not control.high < 0]
    if not_beaten:
        return f"better than the vanilla model, but not than {', '.join(not_beaten)} of equal strength"
    return "better than the vanilla model and than every control of equal strength"


def describe(evaluation: GateEvaluation, baseline: GateEvaluation) -> dict[str, Any]:
    """A row's figures with their paired differences from a baseline."""
    clusters = evaluation.clusters
    differences = {
        "log_loss": paired_difference(evaluation.losses(), baseline.losses(), clusters).as_dict(),
        "accuracy": paired_difference(evaluation.right, baseline.right, clusters).as_dict(),
    }
    if evaluation.is_yes_no:
        differences["log_loss_offset"] = paired_difference(
            evaluation.losses(with_offset=True), baseline.losses(with_offset=True), clusters
        ).as_dict()
    return {**evaluation.summary(), "difference": differences}
