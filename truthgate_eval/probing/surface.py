"""Surface features: what the texts of answers give away without being read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

# What ends a sentence or a clause. Brackets, quotes and % belong to the answer.
_FINAL = ".!?…,;:。\uff01\uff1f"
_ENCLOSING = "\"'()[]\u2018\u2019\u201c\u201d"

FEATURES: dict[str, Callable[[str], float]] = {
    "characters": len,
    "words": lambda text: len(text.split()),
    "log words": lambda text: np.log1p(len(text.split())),
    "characters a word": lambda text: len(text) / max(len(text.split()), 1),
    "ends in punctuation": lambda text: text.endswith(tuple(_FINAL)),
    "inner punctuation": lambda text: sum(character in _FINAL for character in text[:-1]),
    "quotes and brackets": lambda text: sum(character in _ENCLOSING for character in text),
    "starts with a capital": lambda text: text[:1].isupper(),
    "capitals": lambda text: sum(character.isupper() for character in text),
    "capitals a character": lambda text: sum(c.isupper() for c in text) / max(len(text), 1),
    "digits": lambda text: sum(character.isdigit() for character in text),
}


def surface_features(answers: Sequence[str]) -> NDArray[np.float32]:
    """The `FEATURES` of each answer, float32 [n, features], each with mean 0 and variance 1.

    They are standardised because the paper's solver takes a fixed number of steps of a fixed size, which
    fits activations but not counts of characters. A feature that is equal in all answers becomes 0.
    """
    texts = [answer.strip() for answer in answers]
    table = np.array([[feature(text) for feature in FEATURES.values()] for text in texts], dtype=np.float64)
    deviation = table.std(axis=0)
    return ((table - table.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)).astype(np.float32)


def equally_long(answers: Sequence[str]) -> bool:
    """Whether a document has several answers, and no two differ by more than one word in length.

    Example:
        >>> equally_long(["one", "two words"]), equally_long(["one", "now three words"])
        (True, False)
    """
    words = [len(answer.split()) for answer in answers]
    return len(words) > 1 and max(words) - min(words) <= 1


def without_final_punctuation(answer: str) -> str:
    """The answer without the punctuation and space at its end, unless it has nothing else.

    Example:
        >>> without_final_punctuation("James K. Polk.")
        'James K. Polk'
    """
    return answer.rstrip(_FINAL + " \t\r\n") or answer
