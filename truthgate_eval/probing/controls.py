"""Controls: other reasons for a high truth score, each one change to what is probed.

    surface          features of the answer's text without any model: length, capitals, punctuation
    no-context       the same answers, their context without the knowledge
    swapped-context  the same answers, the knowledge of another document in their context
    shuffled-labels  the same activations with shuffled labels

The knowledge is the text field that a task's metadata names (`context_field`), or the image. What a
control's result means stands in `docs/controls.md#the-rule`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.errors import ProbeError
from truthgate_eval.probing.config import (
    CONTROLS,
    NO_CONTEXT,
    SHUFFLED,
    SURFACE,
    SWAPPED,
    ControlName,
    check_control,
)
from truthgate_eval.probing.dataset import ProbeDataset, TokenizedDataset
from truthgate_eval.probing.surface import FEATURES, surface_features

__all__ = [
    "CONTROLS",
    "NO_CONTEXT",
    "SHUFFLED",
    "SURFACE",
    "SWAPPED",
    "ContextChange",
    "Control",
    "context_change",
    "derangement",
    "make_controls",
    "shuffled_labels",
    "swap_images",
    "swap_within",
]

Key = TypeVar("Key", bound=Hashable)
# Given the knowledge of all probed documents, returns the function that replaces a document's knowledge.
ContextChange = Callable[[Iterable[str]], Callable[[str], str]]


@dataclass(frozen=True, eq=False)
class Control:
    """One control, ready to be probed like the answers themselves.

    Attributes:
        name: One of `CONTROLS`.
        sequences: The changed sequences, for the controls of the context.
        features: float32 [n, features] of the answers' texts, for `surface`.
        settings: What the artifact's metadata says of it.
    """

    name: ControlName
    sequences: TokenizedDataset | ProbeDataset | None = None
    features: NDArray[np.float32] | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def derangement(n: int, seed: int) -> NDArray[np.int64]:
    """A permutation of n items that leaves none in its position, uniform over all of these.

    Raises:
        ProbeError: n is below 2, where there is none.

    Example:
        >>> derangement(2, seed=0).tolist()
        [1, 0]
    """
    if n < 2:
        raise ProbeError("swapped-context needs documents with different knowledge: probe on more of them")
    rng = np.random.default_rng(seed)
    positions = np.arange(n)
    while True:  # about one permutation in e is a derangement
        order = rng.permutation(n)
        if (order != positions).all():
            return order


def swap_within(keys: Iterable[Key], *, seed: int) -> dict[Key, Key]:
    """Map each distinct key to another one, each used once: documents that share a key still share one.

    Raises:
        ProbeError: All keys are equal.
    """
    distinct = list(dict.fromkeys(keys))
    return {
        key: distinct[other] for key, other in zip(distinct, derangement(len(distinct), seed), strict=True)
    }


def context_change(name: ControlName, seed: int) -> ContextChange:
    """What a control of the context does to the documents' knowledge, where that is text.

    Knowledge of documents that are not probed (few-shot examples may be such) is removed by `no-context`,
    but not swapped by `swapped-context`.

    Args:
        name: `no-context` or `swapped-context`.
        seed: Of the swap.

    Example:
        >>> change = context_change("swapped-context", seed=0)(["Rome is in Italy.", "Paris is in France."])
        >>> change("Rome is in Italy.")
        'Paris is in France.'
    """
    if name == NO_CONTEXT:
        return lambda _: lambda _text: ""

    def swapped(texts: Iterable[str]) -> Callable[[str], str]:
        other = swap_within(texts, seed=seed)
        return lambda text: other.get(text, text)

    return swapped


def swap_images(dataset: ProbeDataset, seed: int) -> ProbeDataset:
    """The same answers, each about the images of another document.

    Documents with the same image get the same other image, so that none keeps its own.

    Raises:
        ProbeError: All are about one image.
    """
    examples = dataset.examples
    other = swap_within((example.image_key for example in examples), seed=seed)
    load_images = {example.image_key: example.load_images for example in examples}
    swapped = [
        dataclasses.replace(example, load_images=load_images[other[example.image_key]])
        for example in examples
    ]
    return dataclasses.replace(dataset, examples=swapped)


def shuffled_labels(labels: NDArray[np.int64], groups: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Shuffled labels, int [n].

    Documents with equally many answers exchange their labels as a whole. Then each document's labels are
    shuffled among its answers. So every document still has labels that some document has: one truthful and
    one hallucinated answer, where all documents have that.

    Args:
        labels: int [n].
        groups: int [n]; the document that each answer belongs to.
        seed: Of the shuffle.
    """
    rng = np.random.default_rng(seed)
    answers = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    shuffled = np.empty_like(labels)
    for size in sorted({len(own) for own in answers}):
        of_size = np.stack([own for own in answers if len(own) == size])  # [documents, answers]
        shuffled[of_size] = rng.permuted(rng.permutation(labels[of_size]), axis=1)
    return shuffled


def make_controls(
    names: Iterable[str],
    dataset: ProbeDataset,
    changed: Callable[[ControlName], TokenizedDataset | ProbeDataset],
    *,
    seed: int,
) -> list[Control]:
    """The named controls of a data set, each once.

    Args:
        names: Of `CONTROLS`.
        dataset: What is probed.
        changed: Returns the same answers in the context of `no-context` or `swapped-context`.
        seed: Of the swap and the shuffle.

    Raises:
        ProbeError: A control does not exist.
    """
    controls = []
    for name in map(check_control, dict.fromkeys(names)):
        if name == SURFACE:
            features = surface_features([example.answer for example in dataset.examples])
            controls.append(Control(name, features=features, settings={"features": list(FEATURES)}))
        elif name == SHUFFLED:
            controls.append(Control(name, settings={"seed": seed}))
        else:
            controls.append(Control(name, changed(name), settings={"seed": seed} if name == SWAPPED else {}))
    return controls
