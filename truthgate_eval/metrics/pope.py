"""POPE: reading yes or no out of an answer in the three ways that are in use, and counting.

The three ways give three numbers for one set of answers:

* `official`, of POPE's own script: the first sentence without its commas, split at spaces; `No`, `not`
  or `no` among the words means no, everything else means yes, even an empty answer.
* `strict`, of lmms-eval: the whole answer is yes or no, in any case; everything else is no answer.
* `vcd`, of the script released with VCD: the expected word anywhere in the answer makes it right, even
  inside another word ("know"); without it the answer counts as the opposite one.

Whichever way is chosen, an answer in which neither yes nor no stands as a word counts as unparsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from truthgate_eval.errors import TaskError
from truthgate_eval.metrics import yes_no as judgement
from truthgate_eval.metrics.yes_no import Answer, Pair

Parser = Literal["official", "strict", "vcd"]
PARSERS: tuple[Parser, ...] = ("official", "strict", "vcd")
SOURCES = ("coco", "aokvqa", "gqa")
SPLITS = ("random", "popular", "adversarial")
METRICS = ("acc", "precision", "recall", "f1", "yes_ratio", "unparsed")

_YES_OR_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True)
class ParsedAnswer:
    """What was made of one answer.

    Attributes:
        gold: The right answer.
        parsed: The answer that the parser read, or None.
        unparsed: Whether the text says neither yes nor no, whatever the parser made of it.
    """

    gold: str
    parsed: Answer | None
    unparsed: bool

    @property
    def pair(self) -> Pair:
        """As the metrics of `judgement` take it."""
        return self.gold, self.parsed


def check_parser(name: str) -> Parser:
    """The parser of that name.

    Raises:
        TaskError: There is none.
    """
    for known in PARSERS:
        if name == known:
            return known
    raise TaskError(f"unknown POPE parser {name!r}: expected one of {', '.join(PARSERS)}")


def parse(text: str, gold: str, parser: Parser = "official") -> Answer | None:
    """Yes, no or None for an answer.

    Args:
        text: The model's answer.
        gold: The right answer, which only `vcd` looks at.
        parser: `official`, `strict` or `vcd`.
    """
    if parser == "official":
        return _parse_official(text)
    if parser == "strict":
        return _parse_strict(text)
    return _parse_vcd(text, gold)


def parse_answer(text: str, gold: str, parser: Parser = "official") -> ParsedAnswer:
    """The parsed answer beside the right one."""
    parsed = parse(text, gold, parser)
    return ParsedAnswer(gold, parsed, unparsed=parsed is None or _YES_OR_NO.search(text) is None)


def pope_metrics(readings: Iterable[ParsedAnswer]) -> dict[str, float]:
    """POPE's metrics, positive = yes; the yes ratio is that of the predictions."""
    readings = list(readings)
    pairs = [reading.pair for reading in readings]
    return {
        "acc": judgement.accuracy(pairs),
        "precision": judgement.precision(pairs),
        "recall": judgement.recall(pairs),
        "f1": judgement.f1(pairs),
        "yes_ratio": judgement.yes_ratio(pairs),
        "unparsed": sum(reading.unparsed for reading in readings) / len(readings) if readings else 0.0,
    }


def mean_over_splits(splits: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The plain mean of each metric over the splits, as papers report POPE."""
    return {name: sum(split[name] for split in splits) / len(splits) for name in METRICS}


def _parse_official(text: str) -> Answer:
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def _parse_strict(text: str) -> Answer | None:
    word = text.strip().lower()
    if word == "yes":
        return "yes"
    return "no" if word == "no" else None


def _parse_vcd(text: str, gold: str) -> Answer:
    said = gold in text.lower()
    return "yes" if said == (gold == "yes") else "no"
