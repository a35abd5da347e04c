"""What a model itself makes of the answers that its heads are probed on.

A probe reads a head after an answer that was written for the model. A score means one thing where the model
would write that answer itself, and finds the right one likelier than the wrong one, and another thing where
it does neither. Both are measured on the probed documents, and recorded beside the scores.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from truthgate_eval.errors import DataError
from truthgate_eval.probing.config import AUTHORS_FORMAT
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample

# Documents that are asked, evenly spaced: the accuracy of 200 has a standard error of 3.5 points at most.
_MOST_DOCUMENTS = 200
# Of those, documents on which other spellings are tried, and documents whose answers the model writes itself.
_MOST_SPELLED, _MOST_WRITTEN = 40, 20
_WRITTEN_TOKENS = 4
# Answers that a model gives less often than this are unlikely (geometric mean over documents), and so are
# answers that it would rather spell in another way, this many times as often.
_UNLIKELY, _LIKELIER = 0.5, 1.1


class AnswerText(NamedTuple):
    """A prompt, and an answer to it.

    Attributes:
        prompt: What the model reads before the answer.
        answer: The answer, with the space before it if it has one.
        example: Has the images.
    """

    prompt: str
    answer: str
    example: ProbeExample


class AnswerReader(Protocol):
    """A loaded model that answers as it does in an evaluation."""

    def write(self, example: ProbeExample) -> AnswerText:
        """An answer as it is probed."""

    def log_probabilities(self, texts: Sequence[AnswerText]) -> list[float]:
        """Log-probability of each whole answer after its prompt, in nats.

        Raises:
            DataError: An answer has no token of its own.
        """

    def generate(self, texts: Sequence[AnswerText], max_new_tokens: int) -> list[str]:
        """What the model itself writes after each prompt, greedily."""


def measure_own_answers(dataset: ProbeDataset, reader: AnswerReader) -> dict[str, Any]:
    """How likely a model finds the answers that it is probed on.

    Args:
        dataset: The answers.
        reader: The model.

    Returns:
        `documents`, how many were asked; `accuracy`, the share of them whose right answer is likelier than
        every wrong one; `log_probability`, the mean over documents of the right answer's. Of answers that are
        yes or no all probed spellings count together, and there are also `words`, the mean log-probability
        that the model says one of the probed ones; `spellings`, the same of several ways to write them on
        some of the documents, likeliest first, with the probed one marked; and `says`, what most of the
        model's own answers begin with, where it would hardly say what is probed.

    Raises:
        DataError: An image cannot be read.
    """
    documents = _evenly_spaced(list(_by_group(dataset.examples).values()), _MOST_DOCUMENTS)
    texts = [[reader.write(example) for example in document] for document in documents]
    found = iter(reader.log_probabilities([text for own in texts for text in own]))
    values = [np.array([next(found) for _ in own]) for own in texts]
    words = dataset.settings.get("answer_words")
    likeliest = _log_sum if words else np.max  # yes has several spellings, other answers are answers each
    right, compared = [], []
    for document, own in zip(documents, values, strict=True):
        truthful = np.array([example.truthful for example in document])
        if truthful.any():
            right.append(_log_sum(own[truthful]))
            if not truthful.all():
                compared.append(likeliest(own[truthful]) > likeliest(own[~truthful]))
    measured: dict[str, Any] = {"documents": len(documents)}
    if compared:
        measured["accuracy"] = _rounded(float(np.mean(compared)))
    if right:
        measured["log_probability"] = _rounded(float(np.mean(right)))
    return {**measured, **_measure_words(texts, values, reader)} if words else measured


def format_chance(log_probability: float) -> str:
    """A probability in percent with as many decimals as its size needs.

    Example:
        >>> format_chance(-0.0002), format_chance(-0.03), format_chance(-5.8)
        ('100 %', '97 %', '0.3 %')
    """
    percent = 100 * math.exp(log_probability)
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.1g} %"


def unlikely_answers(metadata: Mapping[str, Any]) -> str | None:
    """One sentence for an artifact whose model would hardly give the answers that were probed; else None.

    That is so where it says them too rarely, or would rather spell them in another way.

    Args:
        metadata: The artifact's.
    """
    own = metadata.get("own_answers") or {}
    if not own.get("spellings") or not _are_unlikely(own["words"], own["spellings"]):
        return None
    probed, best = _probed(own["spellings"]), own["spellings"][0]
    text = (
        f"the model would say the probed answers {_quoted(probed['answers'])} in "
        f"{format_chance(probed['log_probability'])} of cases"
    )
    if best is not probed:
        text += f", and {_quoted(best['answers'])} in {format_chance(best['log_probability'])}"
    if own.get("says"):
        text += f"; most of its own answers begin with {own['says']!r}"
    if metadata.get("format") == AUTHORS_FORMAT:
        return f"{text}: --format task asks as it is evaluated"
    return f"{text}: such scores say little about the answers that it would give"


def _measure_words(
    texts: Sequence[Sequence[AnswerText]], values: Sequence[np.ndarray[Any, Any]], reader: AnswerReader
) -> dict[str, Any]:
    """`words`, `spellings` and `says` of `measure_own_answers`."""
    words = [_log_sum(own) for own in values]
    prompts = [own[0] for own in _evenly_spaced(texts, _MOST_SPELLED)]
    probed = list(dict.fromkeys(text.answer for own in texts for text in own))
    known = float(np.mean(_evenly_spaced(words, _MOST_SPELLED)))
    spellings: list[dict[str, Any]] = [
        {"answers": probed, "log_probability": _rounded(known), "probed": True}
    ]
    for pair in _other_spellings(probed):
        asked = [text._replace(answer=answer) for text in prompts for answer in pair]
        try:
            found = np.array(reader.log_probabilities(asked)).reshape(-1, len(pair))
        except DataError:  # the tokenizer merges this spelling with the prompt
            continue
        mean = float(np.mean([_log_sum(own) for own in found]))
        spellings.append({"answers": list(pair), "log_probability": _rounded(mean)})
    spellings.sort(key=lambda one: -one["log_probability"])
    measured: dict[str, Any] = {"words": _rounded(float(np.mean(words))), "spellings": spellings}
    if _are_unlikely(measured["words"], spellings):
        written = reader.generate(_evenly_spaced(prompts, _MOST_WRITTEN), _WRITTEN_TOKENS)
        first = Counter(next(iter(text.split()), text) for text in written)
        measured["says"] = first.most_common(1)[0][0]
    return measured


def _are_unlikely(words: float, spellings: Sequence[Mapping[str, Any]]) -> bool:
    lead = spellings[0]["log_probability"] - _probed(spellings)["log_probability"]
    return words < math.log(_UNLIKELY) or lead > math.log(_LIKELIER)


def _probed(spellings: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return next(one for one in spellings if one.get("probed"))


def _other_spellings(probed: Sequence[str]) -> Iterable[tuple[str, str]]:
    for write in (str.capitalize, str.lower, str.upper):
        for space in ("", " "):
            pair = (space + write("yes"), space + write("no"))
            if not set(pair) & set(probed):
                yield pair


def _by_group(examples: Iterable[ProbeExample]) -> dict[int, list[ProbeExample]]:
    """The answers of each document; one that is repeated has them once."""
    found: dict[int, dict[str, ProbeExample]] = {}
    for example in examples:
        found.setdefault(example.group, {}).setdefault(example.answer, example)
    return {group: list(own.values()) for group, own in found.items()}


def _evenly_spaced(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, the first one among them."""
    step = max(1, math.ceil(len(items) / most))
    return list(items[::step])


def _log_sum(values: np.ndarray[Any, Any]) -> float:
    return float(np.logaddexp.reduce(values))


def _quoted(words: Sequence[str]) -> str:
    return " and ".join(f'"{word}"' for word in words)


def _rounded(value: float) -> float:
    return round(value, 6)
