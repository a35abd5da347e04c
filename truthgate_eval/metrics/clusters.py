"""Which documents of a task belong together: those about one image, or with one question.

Answers to questions about one image are not independent. Splits therefore never divide a cluster, and
confidence intervals resample whole clusters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

ClusterKind = Literal["image", "question", "document"]

# Names under which the data sets of lm-eval and lmms-eval keep an image's file or id, and a question.
# The first one that a document has counts.
IMAGE_FIELDS = ("image", "image_id", "image_source", "image_path")
QUESTION_FIELDS = ("question", "dialogue_history", "document", "query", "prompt")


@dataclass(frozen=True)
class Cluster:
    """What a document shares with others.

    Attributes:
        kind: `image` or `question`.
        field: The document's field that says so.
        value: That field's content.
    """

    kind: ClusterKind
    field: str
    value: str

    @property
    def name(self) -> str:
        """Name of the cluster within a task, such as `image:000001.jpg`."""
        return f"{self.field}:{self.value}"


def find_cluster(document: Mapping[str, Any]) -> Cluster | None:
    """The cluster of a document, or None where the document is a cluster of its own.

    An image counts before a question, since different images may be asked the same question. A field with a
    decoded image does not count: only file names and ids are compared.

    Args:
        document: A document of a task, or the part of it that a harness records beside its answer.

    Example:
        >>> find_cluster({"image": "1.jpg", "question": "Is there a dog in the image?"}).name
        'image:1.jpg'
        >>> find_cluster({"knowledge": "...", "question": "Who wrote it?"}).kind
        'question'
        >>> find_cluster({"sentence": "A text."}) is None
        True
    """
    fields: tuple[tuple[ClusterKind, tuple[str, ...]], ...] = (
        ("image", IMAGE_FIELDS),
        ("question", QUESTION_FIELDS),
    )
    for kind, names in fields:
        for name in names:
            value = document.get(name)
            if isinstance(value, str | int) and value != "":
                return Cluster(kind, name, str(value))
    return None
