"""Yes or no: reading it out of an answer, and counting how often it was right.

Pure functions over parsed answers; both HaluEval and POPE are judged by them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

Answer = Literal["yes", "no"]
Pair = tuple[str, str | None]

_WORD = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


def parse_yes_no(text: str) -> Answer | None:
    """The one of yes and no that stands in the text as a word, or None for neither or both.

    HaluEval's rule: an answer with both or neither is no judgement (METHOD.md, "Evaluation").
    "Know" and "not" are other words.
    """
    found = {word.lower() for word in _WORD.findall(text)}
    if len(found) != 1:
        return None
    return "yes" if "yes" in found else "no"


def accuracy(pairs: Iterable[Pair]) -> float:
    """Share of right answers; one that was not parsed is wrong."""
    return _mean(gold == parsed for gold, parsed in pairs)


def precision(pairs: Iterable[Pair]) -> float:
    """Of the answers that say yes, the share that are right; 0 where none says yes."""
    return _mean(gold == "yes" for gold, parsed in pairs if parsed == "yes")


def recall(pairs: Iterable[Pair]) -> float:
    """Of the questions whose answer is yes, the share answered so; unparsed is a miss."""
    return _mean(parsed == "yes" for gold, parsed in pairs if gold == "yes")


def f1(pairs: Sequence[Pair]) -> float:
    """Harmonic mean of precision and recall; 0 where both are 0."""
    p, r = precision(pairs), recall(pairs)
    return 2 * p * r / (p + r) if p + r else 0.0


def yes_ratio(pairs: Iterable[Pair]) -> float:
    """Share of the answers that say yes: of the model's answers, not of the truth."""
    return _mean(parsed == "yes" for _, parsed in pairs)


def unparsed(pairs: Iterable[Pair]) -> float:
    """Share of the answers that say neither yes nor no, or both."""
    return _mean(parsed is None for _, parsed in pairs)


def _mean(values: Iterable[bool]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0
