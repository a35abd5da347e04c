"""The two splits of a task's documents: a fixed fifth to select a gate on, and the rest to test it on.

See `docs/method.md#soft-gate`. Documents about one image, or with one question, are never in both splits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from truthgate_eval.errors import TaskError
from truthgate_eval.limits import apply_limit
from truthgate_eval.metrics.clusters import find_cluster

# These names stand in documents (`subset`), in artifacts and in results files.
Split = Literal["selection", "evaluation"]
SPLITS: tuple[Split, ...] = get_args(Split)
SELECTION: Split = "selection"
TEST: Split = "evaluation"
# The selection split is one part of this many.
_PARTS = 5


def split_of_number(number: int) -> Split:
    """The split of a document by a number, independently of other documents.

    Args:
        number: A hash of its text; multiples of five are in the selection split.

    Example:
        >>> split_of_number(10), split_of_number(11)
        ('selection', 'evaluation')
    """
    return SELECTION if number % _PARTS == 0 else TEST


def split_documents(documents: Sequence[Mapping[str, Any]]) -> list[Split]:
    """The split of every document of a task, the same in every run and in any order of the documents.

    Documents that all have a `subset` keep it. Otherwise the fifth of the clusters with the smallest hashes
    is the selection split, and at least one cluster.

    Args:
        documents: As the task gives them, without decoded images.

    Example:
        >>> split_documents([{"image": f"{n // 2}.jpg"} for n in range(6)])
        ['selection', 'selection', 'evaluation', 'evaluation', 'evaluation', 'evaluation']
    """
    if documents and all(document.get("subset") in SPLITS for document in documents):
        return [document["subset"] for document in documents]
    names = []
    for index, document in enumerate(documents):
        cluster = find_cluster(document)
        names.append(cluster.name if cluster else f"document:{index}")
    ordered = sorted(set(names), key=_hash)
    selected = set(ordered[: max(1, round(len(ordered) / _PARTS))])
    return [SELECTION if name in selected else TEST for name in names]


def split_indices(
    task: str, documents: Sequence[Mapping[str, Any]], limits: Mapping[Split, float | None]
) -> dict[Split, list[int]]:
    """The indices of a task's documents in each split.

    Args:
        task: The task's name, for messages.
        documents: As for `split_documents`.
        limits: The most documents of each split, or a fraction below 1; None, or a missing split, is no
            limit.

    Raises:
        TaskError: A split is empty.
        TruthGateError: A limit is not above 0.
    """
    splits = split_documents(documents)
    limited: dict[Split, list[int]] = {}
    for split in SPLITS:
        indices = [index for index, own in enumerate(splits) if own == split]
        if not indices:
            raise TaskError(f"task {task!r}: none of its {len(documents)} documents is in the {split} split")
        limited[split] = indices[: apply_limit(limits.get(split), len(indices))]
    return limited


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
