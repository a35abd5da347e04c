"""CHAIR: how many of the objects that captions mention are not on their images.

    CHAIR_i = mentions of objects that are not on the image / mentions of objects
    CHAIR_s = captions with such a mention / captions

Rohrbach et al., "Object hallucination in image captioning" (EMNLP 2018). An object is mentioned by any of its
synonyms, in the singular or plural, and as often as it is named. `recall` is the share of the objects on the
images that are mentioned, and `length` the words of a caption: a model that says less mentions fewer wrong
objects.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

METRICS = ("chair_s", "chair_i", "recall", "length")
# Metrics of which a smaller value is a better one. A caption's length is neither good nor bad.
LOSSES = ("chair_s", "chair_i")
# What `metrics_from_counts` takes, each a sum over captions.
COUNTS = ("captions", "hallucinating", "mentions", "wrong_mentions", "annotated", "recalled", "words")

# A hyphen does not divide a word: an "orange-coloured" cat is no mention of an orange.
_WORD = re.compile(r"[^\W_]+(?:[-'\u2019][^\W_]+)*")
_POSSESSIVE = re.compile(r"['\u2019]s$")
_IRREGULAR = {
    "people": "person", "children": "child", "men": "man", "mice": "mouse", "geese": "goose", "oxen": "ox",
    "feet": "foot", "teeth": "tooth",
}  # fmt: skip
_ANIMALS = (
    "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub",
)  # fmt: skip
# Two words that name one thing, beside those in the list of synonyms, and the word that they count as. A baby
# bird is a bird and no person, a train track no train, and home plate is nothing to eat from.
_PHRASES = {
    **{f"{age} {animal}": animal for age in ("baby", "adult") for animal in _ANIMALS},
    "passenger jet": "jet",
    "passenger train": "train",
    "bow tie": "tie",
    "toilet seat": "toilet",
    "home plate": "",
    "train track": "track",
}
_PHRASE_WORDS = 2
_MAX_NAME_WORDS = 10  # of the names that are looked for, so that no file makes the search slow


@dataclass(frozen=True)
class Mention:
    """A word or phrase of a caption that names an object.

    Attributes:
        name: The name, in the singular.
        object: The object.
    """

    name: str
    object: str


@dataclass(frozen=True)
class Vocabulary:
    """The objects that count, with all their names.

    Attributes:
        objects: By name, the object that it means; an object is called by the first of its names.
        longest: Words of the longest name that is looked for, 10 at most.
    """

    objects: Mapping[str, str] = field(repr=False)  # harnesses write what they print into results files
    longest: int

    @classmethod
    def of(cls, synonyms: Iterable[Sequence[str]]) -> Vocabulary:
        """The vocabulary of lists of synonyms, the first of each list being the object.

        A name in two lists means the later one's object, as in the published code.

        Example:
            >>> Vocabulary.of([["dog", "puppy"], ["hot dog"]]).object_of("Puppy")
            'dog'
        """
        objects: dict[str, str] = {}
        for names in synonyms:
            cleaned = [clean_name(name) for name in names]
            objects.update((name, cleaned[0]) for name in cleaned if name)
        longest = max((name.count(" ") + 1 for name in objects), default=0)
        return cls(objects, min(longest, _MAX_NAME_WORDS))

    def object_of(self, name: str) -> str | None:
        """The object that a name means, or None."""
        return self.objects.get(clean_name(name))

    def mentions(self, caption: str) -> list[Mention]:
        """The objects that a caption mentions, in its order, each as often as it is named.

        Example:
            >>> vocabulary = Vocabulary.of([["dog", "puppy"], ["hot dog"], ["person", "baby"]])
            >>> [one.object for one in vocabulary.mentions("Two puppies and a baby dog eat hot dogs.")]
            ['dog', 'dog', 'hot dog']
        """
        words = [_matched_form(word) for word in split_words(caption)]
        found, names = [], set()
        at = 0
        while at < len(words):
            name, width = self._longest_name(words, at)
            names.add(name)
            if name in self.objects:
                found.append(Mention(name, self.objects[name]))
            at += width
        if "toilet" in names:  # its seat is no chair, however far from it the word stands
            found = [one for one in found if one.name != "seat" or one.object == "seat"]
        return found

    def _longest_name(self, words: Sequence[str], at: int) -> tuple[str, int]:
        """The longest name or phrase that begins at a word, and its number of words; else that word."""
        for width in range(min(max(self.longest, _PHRASE_WORDS), len(words) - at), 0, -1):
            text = " ".join(words[at : at + width])
            forms = list(singular_forms(text))
            name = next((form for form in forms if form in self.objects), None)
            if name is None:
                name = next((_PHRASES[form] for form in forms if form in _PHRASES), None)
            if name is not None:
                return name, width
        return words[at], 1


@dataclass(frozen=True)
class CaptionObjects:
    """The objects of one caption and of its image.

    Attributes:
        mentioned: The objects that the caption mentions, in its order, each as often as it is named.
        present: The objects on the image, without duplicates, in alphabetical order.
        words: Words of the caption.
    """

    mentioned: tuple[str, ...]
    present: tuple[str, ...]
    words: int

    @property
    def hallucinated(self) -> tuple[str, ...]:
        """The mentioned objects that are not on the image, each as often as it is named."""
        return tuple(name for name in self.mentioned if name not in self.present)

    @property
    def counts(self) -> tuple[int, ...]:
        """What the caption adds to each of `COUNTS`."""
        wrong = len(self.hallucinated)
        recalled = len(set(self.mentioned) & set(self.present))
        return 1, int(wrong > 0), len(self.mentioned), wrong, len(self.present), recalled, self.words

    def as_dict(self) -> dict[str, Any]:
        """The entry of a file of samples, see `from_dict`."""
        return {
            "mentioned": list(self.mentioned),
            "hallucinated": list(self.hallucinated),
            "annotated": list(self.present),
            "words": self.words,
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> CaptionObjects:
        """The objects of an entry that `as_dict` made.

        Raises:
            KeyError: A field is missing.
            TypeError: A field has another type.
        """
        lists = [entry[name] for name in ("mentioned", "annotated")]
        words = entry["words"]
        if not all(isinstance(own, list) and all(isinstance(name, str) for name in own) for own in lists):
            raise TypeError(f"its objects are no lists of names: {lists!r}")
        if isinstance(words, bool) or not isinstance(words, int):
            raise TypeError(f"its number of words is {words!r}")
        return cls(tuple(lists[0]), tuple(lists[1]), words)


def find_objects(caption: str, present: Iterable[str], vocabulary: Vocabulary) -> CaptionObjects:
    """The objects that a caption mentions, beside those on its image.

    Args:
        caption: The caption.
        present: The objects on the image, by any of their names; those without a name are left out.
        vocabulary: The objects that count.
    """
    known = {vocabulary.object_of(name) for name in present}
    mentioned = tuple(one.object for one in vocabulary.mentions(caption))
    on_image = tuple(sorted(name for name in known if name is not None))
    return CaptionObjects(mentioned, on_image, len(split_words(caption)))


def split_words(text: str) -> list[str]:
    """The words of a text in small letters, without punctuation.

    Example:
        >>> split_words("The dog's bowl, and a T-shirt.")
        ['the', "dog's", 'bowl', 'and', 'a', 't-shirt']
    """
    return _WORD.findall(unicodedata.normalize("NFC", text).lower())


def clean_name(name: str) -> str:
    """A name of an object as captions are searched for it: in small letters, its words divided by spaces.

    Example:
        >>> clean_name(" Traffic_Light"), clean_name("T-shirt")
        ('traffic light', 't shirt')
    """
    return " ".join(_matched_form(word) for word in split_words(name))


def singular_forms(text: str) -> Iterator[str]:
    """A text, and what it may be in the singular; the last word has the ending.

    Which of the forms is a word is for a vocabulary to say.

    Example:
        >>> list(singular_forms("hot dogs")), list(singular_forms("buses")), list(singular_forms("women"))
        (['hot dogs', 'hot dog'], ['buses', 'buse', 'bus'], ['women', 'woman'])
    """
    yield text
    for plural, singular in _IRREGULAR.items():
        if text.endswith(plural):
            yield text.removesuffix(plural) + singular
    if not text.endswith("s") or text.endswith("ss"):
        return
    yield text[:-1]
    if text.endswith("ies"):
        yield text[:-3] + "y"
    elif text.endswith("ves"):
        yield text[:-3] + "f"
        yield text[:-3] + "fe"
    elif text.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
        yield text[:-2]


def metrics_from_counts(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """CHAIR_s, CHAIR_i, recall and length from counts.

    Args:
        counts: [..., 7], the last axis in the order of `COUNTS`.

    Returns:
        [..., 4], the last axis in the order of `METRICS`. A ratio whose denominator is 0 is NaN: captions
        that mention no object have no CHAIR_i.

    Example:
        >>> metrics_from_counts(np.array([4.0, 1.0, 10.0, 2.0, 8.0, 6.0, 50.0])).tolist()
        [0.25, 0.2, 0.75, 12.5]
    """
    captions, hallucinating, mentions, wrong, annotated, recalled, words = np.moveaxis(counts, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack(
            [hallucinating / captions, wrong / mentions, recalled / annotated, words / captions], axis=-1
        )


def measure(captions: Iterable[CaptionObjects]) -> dict[str, float]:
    """The metrics of captions, by the names in `METRICS`."""
    counts = np.array([caption.counts for caption in captions], dtype=np.float64).reshape(-1, len(COUNTS))
    return dict(zip(METRICS, metrics_from_counts(counts.sum(axis=0)).tolist(), strict=True))


def _matched_form(word: str) -> str:
    """A word as it is matched: without a genitive's ending, a hyphen as a space."""
    return _POSSESSIVE.sub("", word).replace("-", " ")
