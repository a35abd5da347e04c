"""Controls: other reasons for a high score, each as a change to what is probed.

    surface          the answer's text without any model: length, capitals, punctuation (`surface`)
    no-context       the same answers, the knowledge taken out of their context
    swapped-context  the same answers, the knowledge of another document in its place
    shuffled-labels  the same activations, the labels dealt out anew

The knowledge is the text field that a task's metadata names (`context_field`), or the picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from truthgate_eval.errors import ProbeError
from truthgate_eval.probing.dataset import ProbeDataset, TokenizedDataset
from truthgate_eval.probing.surface import FEATURES, surface_features

SURFACE, NO_CONTEXT, SWAPPED, SHUFFLED = "surface", "no-context", "swapped-context", "shuffled-labels"
CONTROLS = (SURFACE, NO_CONTEXT, SWAPPED, SHUFFLED)
CONTEXT_CONTROLS = (NO_CONTEXT, SWAPPED)

Key = TypeVar("Key", bound=Hashable)
# From the knowledge of the probed documents to what is shown in the place of any.
ContextChange = Callable[[Iterable[str]], Callable[[str], str]]


@dataclass(frozen=True, eq=False)
class Control:
    """One control, ready to be probed like the answers themselves.

    Attributes:
        name: One of `CONTROLS`.
        sequences: The changed sequences, for the controls of the context.
        features: float32 [n, features] of the answers' texts, for `surface`.
        settings: What a reader should know of it.
    """

    name: str
    sequences: TokenizedDataset | ProbeDataset | None = None
    features: NDArray[np.float32] | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def check_controls(names: Sequence[str]) -> None:
    """Raise `ProbeError` unless all these controls exist."""
    for name in names:
        if name not in CONTROLS:
            raise ProbeError(f"unknown control {name!r}: expected one of {', '.join(CONTROLS)}")


def derangement(n: int, seed: int) -> NDArray[np.int64]:
    """A permutation of n things, drawn evenly from those that leave none in its place.

    Raises:
        ProbeError: n is below 2, where there is none.
    """
    if n < 2:
        raise ProbeError("swapped-context needs documents with different knowledge: probe on more of them")
    rng = np.random.default_rng(seed)
    places = np.arange(n)
    while True:  # about one permutation in e has nothing in its place
        order = rng.permutation(n)
        if (order != places).all():
            return order


def swap_within(keys: Iterable[Key], *, seed: int) -> dict[Key, Key]:
    """For each distinct key another one, each given once: documents that share a key keep sharing one."""
    distinct = list(dict.fromkeys(keys))
    return {
        key: distinct[other] for key, other in zip(distinct, derangement(len(distinct), seed), strict=True)
    }


def context_change(name: str, seed: int) -> ContextChange:
    """What a control of the context does to the documents' knowledge, where that is text.

    Knowledge of documents that are not probed (few-shot examples may be such) is taken out, but not
    exchanged.
    """
    if name == NO_CONTEXT:
        return lambda _: lambda _text: ""

    def swapped(texts: Iterable[str]) -> Callable[[str], str]:
        other = swap_within(texts, seed=seed)
        return lambda text: other.get(text, text)

    return swapped


def swap_images(answers: ProbeDataset, seed: int) -> ProbeDataset:
    """The same answers, each about the pictures of another document.

    Documents with the same picture stay together, so that none keeps its own.

    Raises:
        ProbeError: All are about one picture.
    """
    other = swap_within((item.image_key for item in answers.examples), seed=seed)
    pictures = {item.image_key: item.load_images for item in answers.examples}
    items = [dataclasses.replace(item, pictures=pictures[other[item.image_key]]) for item in answers.examples]
    return dataclasses.replace(answers, items=items)


def shuffled_labels(labels: NDArray[np.int64], groups: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """The same labels, dealt out anew, int [n].

    Documents with equally many answers exchange their labels as a whole; then each document's are
    shuffled among its answers. So every document still has labels that some document has: one true
    and one false, where all have that.

    Args:
        labels: int [n].
        groups: int [n]; the document that each answer belongs to.
        seed: Of the shuffle.
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    shuffled = np.empty_like(labels)
    for size in sorted({len(rows) for rows in members}):
        alike = np.stack([rows for rows in members if len(rows) == size])  # [documents, answers]
        shuffled[alike] = rng.permuted(rng.permutation(labels[alike]), axis=1)
    return shuffled


def make_controls(
    names: Iterable[str],
    answers: ProbeDataset,
    changed: Callable[[str], TokenizedDataset | ProbeDataset],
    *,
    seed: int,
) -> list[Control]:
    """The named controls of some answers, each once.

    Args:
        names: Of `CONTROLS`.
        answers: What is probed.
        changed: Gives the same answers in the context of a control of the context.
        seed: Of the exchange and the shuffle.
    """
    made = []
    for name in dict.fromkeys(names):
        if name == SURFACE:
            features = surface_features([item.answer for item in answers.examples])
            made.append(Control(name, features=features, settings={"features": list(FEATURES)}))
        elif name in CONTEXT_CONTROLS:
            made.append(Control(name, changed(name), settings={"seed": seed} if name == SWAPPED else {}))
        else:
            made.append(Control(name, settings={"seed": seed}))
    return made
