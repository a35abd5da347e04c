"""What probing reads: answers to questions as a task gives them, and as a model takes them."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.data.author_sequences import read_sequences
from truthgate_eval.data.images import ImageFolders, describe_missing, open_image
from truthgate_eval.errors import DataError

# Decodes a document's pictures, when they are needed.
ImageLoader = Callable[[], Sequence[Any]]


@dataclass(frozen=True)
class ProbeExample:
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
    load_images: ImageLoader | None = None
    image_key: Hashable = None


@dataclass(frozen=True, eq=False)
class ProbeDataset:
    """All answers of some tasks, and where they come from.

    Attributes:
        items: One for each answer of each document.
        rows: For each data set, the rows of the original file that were used, so that an
            evaluation can leave them out.
        settings: How they were made: task, few-shot examples, chat template.
        bare: Whether contexts are bare questions, as tasks with pictures write them; text tasks
            write what introduces the answer, such as "Answer:", themselves.
    """

    examples: list[ProbeExample]
    rows: dict[str, list[int]]
    settings: dict[str, Any]
    bare_questions: bool = False

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels, int [n]: 1 where the answer is truthful."""
        return np.array([item.truthful for item in self.examples], dtype=np.int64)

    @property
    def groups(self) -> NDArray[np.int64]:
        """Documents, int [n]: the one that each answer belongs to."""
        return np.array([item.group for item in self.examples], dtype=np.int64)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over texts and labels, in order; pictures do not count."""
        return text_fingerprint([(item.context + item.answer, int(item.truthful)) for item in self.examples])


@dataclass(frozen=True, eq=False)
class TokenizedDataset:
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


def apply_limit(limit: float | None, available: int) -> int:
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


def load_author_dataset(
    path: Path, folders: ImageFolders, *, limit: float | None = None, allow_missing: bool = False
) -> ProbeDataset:
    """The answers of such a file, with their pictures.

    Sequences with one question and one picture are one document: they belong on one side of a split.

    Args:
        path: See `read_sequences`.
        folders: Where the pictures are.
        limit: The first so many lines, or a fraction of them below 1.
        allow_missing: Leave sequences whose picture is missing out instead of refusing.

    Raises:
        DataError: The file is not in that format, or pictures are missing.
    """
    rows = read_sequences(path, folders)
    rows = rows[: apply_limit(limit, len(rows))]
    found, missing = folders.find_all(row["image"] for row in rows)
    if missing and not (allow_missing and found):
        hint = "; --allow-missing leaves their sequences out" if found else ", so none of them was found"
        raise DataError(describe_missing(missing, folders.folders) + hint)
    kept = [row for row in rows if row["image"] in found]
    groups: dict[Hashable, int] = {}
    items = []
    for row in kept:
        group = groups.setdefault((row["image"], row["question"]), len(groups))
        file = found[row["image"]]
        pictures = functools.partial(_open, file)
        answer, truthful = row["choices"][0], bool(row["target"])
        items.append(ProbeExample(row["question"], answer, truthful, group, pictures, file))
    settings = {"task": path.name, "missing_pictures": len(missing)}
    return ProbeDataset(items, {path.stem: [row["row"] for row in kept]}, settings, bare_questions=True)


def _open(path: Path) -> list[Any]:
    return [open_image(path)]
