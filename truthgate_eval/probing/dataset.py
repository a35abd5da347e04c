"""Probing data: the labelled answers to a task's questions, as text and as a text model's tokens."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from truthgate_eval.data.author_sequences import read_sequences
from truthgate_eval.data.images import ImageFolders, describe_missing, open_image
from truthgate_eval.errors import DataError
from truthgate_eval.limits import apply_limit

# Decodes the images of a document. They are decoded when their batch runs, not before.
ImageLoader = Callable[[], Sequence[Image]]


@dataclass(frozen=True)
class ProbeExample:
    """One answer to one question, before any tokenizer. Context + answer is one probing sequence.

    Attributes:
        context: The text before the answer, as the task writes it.
        answer: The answer, with the space that separates it from the context.
        truthful: Whether the answer is right.
        group: Number of the question that it answers. Sequences of a group are validated in one fold and
            count as one cluster in standard errors, so numbers must differ between tasks
            (`next_group`).
        load_images: Decodes the document's images; None where it has none.
        image_key: Equal for documents about the same images, different for all others.
        cluster: What the document shares with others that are not independent of it, such as the name of an
            image or a question; None for nothing but `image_key` and `group`. It tells no images apart.
    """

    context: str
    answer: str
    truthful: bool
    group: int
    load_images: ImageLoader | None = None
    image_key: Hashable = None
    cluster: Hashable = None


@dataclass(frozen=True, eq=False)
class ProbeDataset:
    """All answers of some tasks, and where they come from.

    Attributes:
        examples: One for each answer of each document.
        rows: For each data set, the rows of the original file that were used, so that an
            evaluation can leave them out.
        settings: How they were made: task, few-shot examples, chat template.
        bare_questions: Whether contexts are bare questions, as image tasks write them. Text tasks end
            their contexts with what introduces the answer, such as "Answer:".

    Example:
        >>> data = ProbeDataset(
        ...     [
        ...         ProbeExample("Is the sky blue? Answer:", " yes", truthful=True, group=0),
        ...         ProbeExample("Is the sky blue? Answer:", " no", truthful=False, group=0),
        ...     ],
        ...     rows={"my_questions": [0]},
        ...     settings={"task": "my_task"},
        ... )
        >>> len(data), data.labels.tolist(), data.groups.tolist()
        (2, [1, 0], [0, 0])
    """

    examples: list[ProbeExample]
    rows: dict[str, list[int]]
    settings: dict[str, Any]
    bare_questions: bool = False

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels, int [n]: 1 where the answer is truthful, 0 where it is hallucinated."""
        return np.array([example.truthful for example in self.examples], dtype=np.int64)

    @property
    def groups(self) -> NDArray[np.int64]:
        """Groups, int [n]: the question that each answer belongs to."""
        return np.array([example.group for example in self.examples], dtype=np.int64)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over texts and labels, in order. Images are not part of it."""
        return text_fingerprint(
            [(example.context + example.answer, int(example.truthful)) for example in self.examples]
        )


@dataclass(frozen=True, eq=False)
class TokenizedDataset:
    """A `ProbeDataset` as a text model's tokenizer writes it.

    Attributes:
        tokens: Token ids of each sequence, context + answer; the last one is the answer's last token.
        labels: int [n]; 1 where the answer is truthful, 0 where it is hallucinated.
        groups: int [n]; the question that the sequence belongs to.
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


def next_group(examples: Iterable[ProbeExample]) -> int:
    """The first group number above all that are taken, so that no two tasks share a group.

    The last example's group need not be the highest: a question may be repeated.

    Example:
        >>> examples = [ProbeExample("q", " a", True, group) for group in (0, 1, 0)]
        >>> next_group(examples), next_group([])
        (2, 0)
    """
    return max((example.group for example in examples), default=-1) + 1


def text_fingerprint(texts: Iterable[tuple[str, int]]) -> str:
    """SHA-256 over (text, label) pairs, in order."""
    digest = hashlib.sha256()
    for text, label in texts:
        digest.update(f"{len(text)}:{label}:".encode())
        digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def load_author_dataset(
    path: Path, folders: ImageFolders, *, limit: float | None = None, allow_missing: bool = False
) -> ProbeDataset:
    """The probing data that the TruthProbe authors publish as JSON lines, with its images.

    Sequences with one question and one image are one group: they belong on one side of a split.

    Args:
        path: JSON lines, see `read_sequences`.
        folders: Where the images are.
        limit: The first lines, as a number or as a fraction below 1.
        allow_missing: Leave out sequences whose image is missing instead of raising.

    Raises:
        DataError: The file is not in that format, or images are missing.
    """
    rows = read_sequences(path, folders)
    rows = rows[: apply_limit(limit, len(rows))]
    found, missing = folders.find_all(row["image"] for row in rows)
    if missing and not (allow_missing and found):
        hint = "; --allow-missing leaves their sequences out" if found else ", so none of them was found"
        raise DataError(describe_missing(missing, folders.folders) + hint)
    kept = [row for row in rows if row["image"] in found]
    groups: dict[Hashable, int] = {}
    examples = []
    for row in kept:
        file = found[row["image"]]
        group = groups.setdefault((file, row["question"]), len(groups))
        load_images = functools.partial(_open_images, file)
        answer, truthful = row["choices"][0], bool(row["target"])
        examples.append(ProbeExample(row["question"], answer, truthful, group, load_images, file))
    settings = {"task": path.name, "missing_pictures": len(missing)}
    return ProbeDataset(examples, {path.stem: [row["row"] for row in kept]}, settings, bare_questions=True)


def _open_images(path: Path) -> list[Image]:
    return [open_image(path)]
