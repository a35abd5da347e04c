"""The sequences that a probing task gives: tokens, labels, and which document each comes from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ProbingSequences:
    """Context + answer, once for every answer of every document.

    Attributes:
        tokens: Token ids of each sequence; the last one is the answer's last token.
        labels: int [n]; 1 where the answer is truthful, 0 where it is hallucinated.
        groups: int [n]; the document that the sequence belongs to.
        rows: For each data set, the rows of the original file that were used, so that an
            evaluation can leave them out.
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


def text_fingerprint(texts: list[tuple[str, int]]) -> str:
    """SHA-256 over (text, label) pairs, in order."""
    digest = hashlib.sha256()
    for text, label in texts:
        digest.update(f"{len(text)}:{label}:".encode())
        digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
