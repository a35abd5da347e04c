"""What probing reads: answers to questions as a task gives them, and as a model takes them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Decodes a document's pictures, when they are needed.
Pictures = Callable[[], Sequence[Any]]


@dataclass(frozen=True)
class Answered:
    """One answer to one question, before any tokenizer.

    Attributes:
        context: The text before the answer, as the task writes it.
        answer: The answer, with whatever stands between it and the context.
        truthful: Whether the answer is right.
        group: The document that it belongs to, numbered through all data.
        pictures: Decodes the document's pictures; None where it has none.
        picture: Tells different pictures apart: documents that share it are about the same ones.
    """

    context: str
    answer: str
    truthful: bool
    group: int
    pictures: Pictures | None = None
    picture: Hashable = None


@dataclass(frozen=True, eq=False)
class Answers:
    """All answers of some tasks, and where they come from.

    Attributes:
        items: One for each answer of each document.
        rows: For each data set, the rows of the original file that were used, so that an
            evaluation can leave them out.
        settings: How they were made: task, few-shot examples, chat template.
        bare: Whether contexts are bare questions, as tasks with pictures write them; text tasks
            write what introduces the answer, such as "Answer:", themselves.
    """

    items: list[Answered]
    rows: dict[str, list[int]]
    settings: dict[str, Any]
    bare: bool = False

    def __len__(self) -> int:
        return len(self.items)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels, int [n]: 1 where the answer is truthful."""
        return np.array([item.truthful for item in self.items], dtype=np.int64)

    @property
    def groups(self) -> NDArray[np.int64]:
        """Documents, int [n]: the one that each answer belongs to."""
        return np.array([item.group for item in self.items], dtype=np.int64)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over texts and labels, in order; pictures do not count."""
        return text_fingerprint([(item.context + item.answer, int(item.truthful)) for item in self.items])


@dataclass(frozen=True, eq=False)
class ProbingSequences:
    """Context + answer, once for every answer of every document.

    Attributes:
        tokens: Token ids of each sequence; the last one is the answer's last token.
        labels: int [n]; 1 where the answer is truthful, 0 where it is hallucinated.
        groups: int [n]; the document that the sequence belongs to.
        rows: For each data set, the rows of the original file that were used.
        fingerprint: SHA-256 of all texts and labels, whatever the tokenizer.
        settings: How the sequences were made: task, few-shot examples, chat template.
    """

    tokens: list[list[int]]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    rows: dict[str, list[int]]
    fingerprint: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)


def within(limit: float | None, available: int) -> int:
    """How many of the available documents a limit leaves: a number, or a fraction below 1, as in lm-eval."""
    if limit is None:
        return available
    return min(available, math.ceil(available * limit) if limit < 1 else int(limit))


def text_fingerprint(texts: list[tuple[str, int]]) -> str:
    """SHA-256 over (text, label) pairs, in order."""
    digest = hashlib.sha256()
    for text, label in texts:
        digest.update(f"{len(text)}:{label}:".encode())
        digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
