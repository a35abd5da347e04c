"""Yes/no questions judged by the log-odds of yes against no, with and without a threshold.

An answer in words depends on a threshold: a model that says yes too often is wrong more often, however well
its log-odds tell the two kinds of question apart. `auroc` needs no threshold, and `log_loss_offset` corrects
a constant that is added to all log-odds; `acc`, `log_loss` and `yes_ratio` change with that constant.

A threshold and an offset are fitted on documents of other clusters (images or questions) than those that they
are used on, so that they gain nothing from noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp

# Metrics of `measure`. All but `auroc` are means over documents of `document_values`.
MEANS = ("acc", "acc_at_threshold", "log_loss", "log_loss_offset", "yes_ratio")
METRICS = ("acc", "auroc", "acc_at_threshold", "log_loss", "log_loss_offset", "yes_ratio")
# Metrics of which a smaller value is a better one.
LOSSES = ("log_loss", "log_loss_offset")
FOLDS = 5
_NEWTON_STEPS = 100


class LogOddsAnswer(TypedDict):
    """One document's entry in a file of samples.

    Attributes:
        log_odds: log P(yes) - log P(no), in nats.
        gold: The right answer, `yes` or `no`.
        cluster: The image or question that the document shares with others.
    """

    log_odds: float
    gold: str
    cluster: str


def log_odds_of_spellings(yes: Sequence[float], no: Sequence[float]) -> float:
    """Log-odds of yes against no, each summed over its spellings.

    Args:
        yes: Log-probability of each spelling of yes.
        no: The same of no.

    Example:
        >>> round(log_odds_of_spellings([np.log(0.3), np.log(0.3)], [np.log(0.2)]), 4)  # log(0.6 / 0.2)
        1.0986
    """
    return float(logsumexp(yes) - logsumexp(no))


def auroc(answers: Sequence[LogOddsAnswer]) -> float:
    """Area under the ROC curve: how often a yes question has larger log-odds than a no question.

    Ties count half. NaN where all questions have one answer.

    Example:
        >>> auroc(_example([2.0, 1.0, 1.0, -3.0], ["yes", "yes", "no", "no"]))
        0.875
    """
    log_odds, is_yes = _arrays(answers)
    return float(weighted_auroc(log_odds, is_yes, np.ones((1, len(answers))))[0])


def acc(answers: Sequence[LogOddsAnswer]) -> float:
    """Accuracy of saying yes where the log-odds are 0 or more.

    At 0 the answer is yes, as both harnesses take the first of equally likely choices.

    Example:
        >>> acc(_example([2.0, 0.0, 1.0, -3.0], ["yes", "yes", "no", "no"]))
        0.75
    """
    return _mean("acc", answers)


def acc_at_threshold(answers: Sequence[LogOddsAnswer]) -> float:
    """Accuracy at the threshold that is best on the documents of the other folds.

    NaN where all documents are of one cluster.

    Example:
        >>> biased = _example([5.0, 6.0, 3.0, 2.0] * 5, ["yes", "yes", "no", "no"] * 5)
        >>> acc(biased), acc_at_threshold(biased)
        (0.5, 1.0)
    """
    return _mean("acc_at_threshold", answers)


def log_loss(answers: Sequence[LogOddsAnswer]) -> float:
    """Mean of -log P(right answer), in nats, where P(yes) + P(no) is taken as 1.

    Example:
        >>> round(log_loss(_example([0.0, 0.0], ["yes", "no"])), 4)  # log 2
        0.6931
    """
    return _mean("log_loss", answers)


def log_loss_offset(answers: Sequence[LogOddsAnswer]) -> float:
    """`log_loss` with the constant added to the log-odds that is best on the documents of the other folds.

    NaN where the documents of the other folds all have one answer, or there are none.

    Example:
        >>> answers = _example([2.0, -1.0, 1.0, -2.0] * 5, ["yes", "yes", "no", "no"] * 5)
        >>> biased = [{**answer, "log_odds": answer["log_odds"] + 3} for answer in answers]
        >>> round(log_loss(answers), 3), round(log_loss(biased), 3)
        (0.72, 1.366)
        >>> round(log_loss_offset(answers), 3), round(log_loss_offset(biased), 3)
        (0.745, 0.745)
    """
    return _mean("log_loss_offset", answers)


def yes_ratio(answers: Sequence[LogOddsAnswer]) -> float:
    """Share of documents whose log-odds are 0 or more.

    Example:
        >>> yes_ratio(_example([2.0, 0.0, 1.0, -3.0], ["yes", "yes", "no", "no"]))
        0.75
    """
    return _mean("yes_ratio", answers)


def document_values(answers: Sequence[LogOddsAnswer]) -> dict[str, NDArray[np.float64]]:
    """What each document contributes to the metrics `MEANS`, [n] each."""
    log_odds, is_yes = _arrays(answers)
    folds = fold_of_each([answer["cluster"] for answer in answers])
    threshold = _cross_fit(_best_threshold, log_odds, is_yes, folds)
    offset = _cross_fit(_best_offset, log_odds, is_yes, folds)
    said_yes = log_odds >= 0
    at_threshold = ((log_odds >= threshold) == is_yes).astype(np.float64)
    return {
        "acc": (said_yes == is_yes).astype(np.float64),
        "acc_at_threshold": np.where(np.isnan(threshold), np.nan, at_threshold),
        "log_loss": _losses(log_odds, is_yes),
        "log_loss_offset": _losses(log_odds + offset, is_yes),
        "yes_ratio": said_yes.astype(np.float64),
    }


def measure(answers: Sequence[LogOddsAnswer]) -> dict[str, float]:
    """All of `METRICS`."""
    means = {name: float(values.mean()) for name, values in document_values(answers).items()}
    return {name: auroc(answers) if name == "auroc" else means[name] for name in METRICS}


def weighted_auroc(
    log_odds: NDArray[np.float64], is_yes: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`auroc` of documents that count several times, or not at all, as in resamples.

    Args:
        log_odds: [n].
        is_yes: Right answers, [n].
        weights: How often each document counts, [resamples, n].

    Returns:
        [resamples]; NaN where only one right answer is left.
    """
    order = np.argsort(log_odds, kind="stable")
    starts = np.flatnonzero(np.diff(log_odds[order], prepend=-np.inf))  # of each run of equal log-odds
    sorted_weights, sorted_yes = weights[:, order], is_yes[order]
    yes = np.add.reduceat(sorted_weights * sorted_yes, starts, axis=1)
    no = np.add.reduceat(sorted_weights * ~sorted_yes, starts, axis=1)
    won = (yes * (no.cumsum(axis=1) - no / 2)).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return won / (yes.sum(axis=1) * no.sum(axis=1))


def fold_of_each(clusters: Sequence[str]) -> NDArray[np.int64]:
    """The fold of each document, [n], 0 to `FOLDS` - 1; a cluster is in one fold.

    Clusters are dealt out in the order of a hash of their names: the folds are the same in every run on the
    same documents, in whatever order these come.

    Example:
        >>> folds = fold_of_each(["a.jpg", "b.jpg", "a.jpg", "c.jpg"])
        >>> bool(folds[0] == folds[2]), len(set(folds.tolist()))
        (True, 3)
    """
    order = sorted(set(clusters), key=lambda name: hashlib.sha256(name.encode()).digest())
    fold = {name: i % FOLDS for i, name in enumerate(order)}
    return np.array([fold[name] for name in clusters], dtype=np.int64)


def _cross_fit(
    fit: Callable[[NDArray[np.float64], NDArray[np.bool_]], float],
    log_odds: NDArray[np.float64],
    is_yes: NDArray[np.bool_],
    folds: NDArray[np.int64],
) -> NDArray[np.float64]:
    """For each document, what `fit` gives on the documents of the other folds, [n]; NaN without any."""
    fitted = np.full(len(log_odds), np.nan)
    for fold in np.unique(folds):
        others = folds != fold
        if others.any():
            fitted[~others] = fit(log_odds[others], is_yes[others])
    return fitted


def _best_threshold(log_odds: NDArray[np.float64], is_yes: NDArray[np.bool_]) -> float:
    """The threshold with the most right answers: half-way between two log-odds, or beyond all of them.

    Of equally good ones it is the middle one, and not the one nearest to 0: a constant that is added to all
    log-odds is to move the threshold by as much.
    """
    values, index = np.unique(log_odds, return_inverse=True)
    yes = np.bincount(index, weights=is_yes)
    no = np.bincount(index, weights=~is_yes)
    # With threshold i, all but the lowest i values say yes.
    right = np.concatenate([[0.0], no.cumsum()]) + np.concatenate([yes[::-1].cumsum()[::-1], [0.0]])
    best = np.flatnonzero(right == right.max())
    thresholds = np.concatenate([[-np.inf], (values[:-1] + values[1:]) / 2, [np.inf]])
    return float(thresholds[best[len(best) // 2]])


def _best_offset(log_odds: NDArray[np.float64], is_yes: NDArray[np.bool_]) -> float:
    """The constant that minimizes the mean log-loss: with it, the mean of P(yes) is the share of yes.

    Newton's method inside a bracket. NaN where there is no minimum: all right answers are equal.
    """
    share = is_yes.mean()
    if share in (0.0, 1.0):
        return float("nan")
    middle = float(np.log(share / (1 - share)))
    low, high = middle - float(log_odds.max()), middle - float(log_odds.min())
    offset = (low + high) / 2
    for _ in range(_NEWTON_STEPS):
        chance = expit(log_odds + offset)
        excess, slope = float(chance.mean() - share), float((chance * (1 - chance)).mean())
        low, high = (low, offset) if excess > 0 else (offset, high)
        newton = offset - excess / slope if slope > 0 else low
        following = newton if low < newton < high else (low + high) / 2
        if abs(following - offset) <= 1e-14 * max(1.0, abs(offset)):
            return following
        offset = following
    return offset


def _losses(log_odds: NDArray[np.float64], is_yes: NDArray[np.bool_]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # NaN where there is no offset
        return np.logaddexp(0.0, np.where(is_yes, -log_odds, log_odds))


def _mean(metric: str, answers: Sequence[LogOddsAnswer]) -> float:
    return float(document_values(answers)[metric].mean())


def _arrays(answers: Sequence[LogOddsAnswer]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    log_odds = np.array([answer["log_odds"] for answer in answers], dtype=np.float64)
    return log_odds, np.array([answer["gold"] == "yes" for answer in answers], dtype=bool)


def _example(log_odds: Sequence[float], golds: Sequence[str]) -> list[LogOddsAnswer]:
    """Answers about as many images, for the examples above."""
    return [
        {"log_odds": value, "gold": gold, "cluster": f"{i}.jpg"}
        for i, (value, gold) in enumerate(zip(log_odds, golds, strict=True))
    ]
