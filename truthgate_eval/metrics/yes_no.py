"""Yes/no answers: parsed from text, and accuracy, precision, recall and F1 of yes.

Metrics are computed from two kinds of input. lm-eval and lmms-eval aggregate predictions, one at a time.
`metrics_from_counts` takes arrays of counts, for leaderboards and their bootstrap.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Answer = Literal["yes", "no"]
YES_NO: tuple[Answer, ...] = get_args(Answer)
Prediction = tuple[str, str | None]  # (gold answer, parsed answer or None)
METRICS = ("acc", "f1", "precision", "recall")
# What `metrics_from_counts` takes, each a sum over documents.
COUNTS = ("documents", "right", "true_yes", "said_yes", "gold_yes")

_WORD = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


def parse_yes_no(text: str) -> Answer | None:
    """The one of yes and no that is in the text as a word, or None for neither or both.

    This is HaluEval's rule; see `docs/method.md#evaluation`.

    Example:
        >>> parse_yes_no("No, it does not."), parse_yes_no("I do not know"), parse_yes_no("Yes and no")
        ('no', None, None)
    """
    found = {word.lower() for word in _WORD.findall(text)}
    if len(found) != 1:
        return None
    return "yes" if "yes" in found else "no"


def has_yes_or_no(text: str) -> bool:
    """Whether yes or no, or both, are in the text as words.

    Example:
        >>> has_yes_or_no("Yes and no"), has_yes_or_no("I do not know")
        (True, False)
    """
    return _WORD.search(text) is not None


def accuracy(predictions: Iterable[Prediction]) -> float:
    """Share of right answers. An unparsed answer is wrong."""
    return _mean(gold == parsed for gold, parsed in predictions)


def precision(predictions: Iterable[Prediction]) -> float:
    """Share of right answers among the answers yes; 0 where no answer is yes."""
    return _mean(gold == "yes" for gold, parsed in predictions if parsed == "yes")


def recall(predictions: Iterable[Prediction]) -> float:
    """Share of answers yes among the questions whose gold answer is yes; 0 where there are none."""
    return _mean(parsed == "yes" for gold, parsed in predictions if gold == "yes")


def f1(predictions: Sequence[Prediction]) -> float:
    """Harmonic mean of precision and recall; 0 where both are 0."""
    p, r = precision(predictions), recall(predictions)
    return 2 * p * r / (p + r) if p + r else 0.0


def yes_ratio(predictions: Iterable[Prediction]) -> float:
    """Share of yes among all answers, whatever the gold answers are."""
    return _mean(parsed == "yes" for _, parsed in predictions)


def unparsed(predictions: Iterable[Prediction]) -> float:
    """Share of the answers that were not parsed."""
    return _mean(parsed is None for _, parsed in predictions)


def metrics_from_counts(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Accuracy, F1, precision and recall from counts.

    F1 is 2 true_yes / (said_yes + gold_yes), which equals the harmonic mean of `f1` except for rounding in
    the last digit.

    Args:
        counts: [..., 5], the last axis in the order of `COUNTS`.

    Returns:
        [..., 4], the last axis in the order of `METRICS`. A ratio whose denominator is 0 is 0, but the
        accuracy of no document is nan.

    Example:
        >>> metrics_from_counts(np.array([4.0, 3.0, 2.0, 3.0, 2.0])).round(3).tolist()
        [0.75, 0.8, 0.667, 1.0]
    """
    documents, right, true_yes, said_yes, gold_yes = np.moveaxis(counts, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracies = right / documents
    return np.stack(
        [
            accuracies,
            _ratio(2 * true_yes, said_yes + gold_yes),
            _ratio(true_yes, said_yes),
            _ratio(true_yes, gold_yes),
        ],
        axis=-1,
    )


def _mean(values: Iterable[bool]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros_like(part, dtype=np.float64), where=whole > 0)
