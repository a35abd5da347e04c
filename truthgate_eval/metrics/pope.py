"""POPE: yes or no parsed from an answer in the three ways that are in use, and the metrics.

The three parsers give three results for the same answers:

* `official`, of POPE's own script: the first sentence without its commas is split at spaces; `No`, `not` or
  `no` among the words means no, and everything else means yes, even an empty answer.
* `strict`, of lmms-eval: the whole answer is yes or no, in any case; everything else is no answer.
* `vcd`, of the script released with VCD: an answer that contains the gold answer, even inside another word
  ("know"), is right; any other answer counts as the opposite of the gold answer.

With every parser, an answer in which neither yes nor no is a word counts as unparsed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from truthgate_eval.errors import TaskError, check_choice
from truthgate_eval.metrics import yes_no
from truthgate_eval.metrics.yes_no import Answer, Prediction

Parser = Literal["official", "strict", "vcd"]
PARSERS: tuple[Parser, ...] = get_args(Parser)
SOURCES = ("coco", "aokvqa", "gqa")
SPLITS = ("random", "popular", "adversarial")
METRICS = ("acc", "precision", "recall", "f1", "yes_ratio", "unparsed")


@dataclass(frozen=True)
class ParsedAnswer:
    """One answer as a parser reads it.

    Attributes:
        gold: The gold answer.
        parsed: The parsed answer, or None.
        unparsed: Whether neither yes nor no is a word of the text; `parsed` can be an answer all the same.
    """

    gold: str
    parsed: Answer | None
    unparsed: bool

    @property
    def prediction(self) -> Prediction:
        """The gold and the parsed answer, for the metrics of `truthgate_eval.metrics.yes_no`."""
        return self.gold, self.parsed


def check_parser(name: str) -> Parser:
    """The name of a parser, checked.

    Raises:
        TaskError: There is no such parser.
    """
    return check_choice("POPE parser", name, PARSERS, TaskError)


def parse(text: str, gold: str, parser: Parser = "official") -> Answer | None:
    """Yes, no or None for an answer.

    Args:
        text: The model's answer.
        gold: The gold answer, which only `vcd` uses.
        parser: See the top of this module.

    Example:
        >>> [parse("I do not know", "yes", parser) for parser in PARSERS]
        ['no', None, 'no']
    """
    if parser == "official":
        return _parse_official(text)
    if parser == "strict":
        return _parse_strict(text)
    return _parse_vcd(text, gold)


def parse_answer(text: str, gold: str, parser: Parser = "official") -> ParsedAnswer:
    """The parsed answer with the gold answer."""
    parsed = parse(text, gold, parser)
    return ParsedAnswer(gold, parsed, unparsed=parsed is None or not yes_no.has_yes_or_no(text))


def pope_metrics(answers: Iterable[ParsedAnswer]) -> dict[str, float]:
    """POPE's metrics, by the names in `METRICS`; yes is the positive class."""
    answers = list(answers)
    predictions = [answer.prediction for answer in answers]
    return {
        "acc": yes_no.accuracy(predictions),
        "precision": yes_no.precision(predictions),
        "recall": yes_no.recall(predictions),
        "f1": yes_no.f1(predictions),
        "yes_ratio": yes_no.yes_ratio(predictions),
        "unparsed": sum(answer.unparsed for answer in answers) / len(answers) if answers else 0.0,
    }


def mean_over_splits(splits: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The unweighted mean of each metric over the splits, as papers report POPE."""
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
    is_right = gold in text.lower()
    return "yes" if is_right == (gold == "yes") else "no"
