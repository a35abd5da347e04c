"""Minimal pairs: a chosen and a rejected answer that differ in their last one or two words only.

A probe can tell two answers apart by their length and style. In a minimal pair only the claim differs; see
`docs/method.md#probing-data`. A rewriter gives the rejected answer the sentence structure of the chosen one.
A filter then keeps the minimal pairs, and reports why it drops the others.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from truthgate_eval.data.records import Record, as_text, read_records
from truthgate_eval.data.store import PreparedDataset, Row, read_rows, write_dataset
from truthgate_eval.errors import DataError
from truthgate_eval.files import MAX_DATASET_BYTES, read_bounded, sha256, write_atomic

# What `check_pair` returns, and what it means.
REASONS = {
    "kept": "differs in the last words only",
    "empty": "an answer has no words",
    "identical": "both answers have the same words",
    "earlier": "differs before the last words",
    "added": "one answer is the other with words added",
    "ending": "the answers end in different punctuation",
}

_ENDING = re.compile(r"[\s.!?,;:…]*$")
_EDGES = re.compile(r"^\W+|\W+$")


@dataclass(frozen=True)
class AnswerPair:
    """A question about an image with a truthful and a hallucinated answer.

    Attributes:
        row: The pair's number in its source.
        question: The question.
        chosen: The truthful answer.
        rejected: The hallucinated answer.
        image_path: The image's file, or None.
    """

    row: int
    question: str
    chosen: str
    rejected: str
    image_path: str | None = None


Rewriter = Callable[[AnswerPair], str]


def check_pair(chosen: str, rejected: str, *, last_words: int = 2) -> str:
    """`kept` for a minimal pair, or the reason why it is none: a key of `REASONS`.

    Words are compared without case and without punctuation at their beginning and end.

    Args:
        chosen: The truthful answer.
        rejected: The hallucinated answer.
        last_words: How many words at the end may differ.

    Example:
        >>> check_pair("The cat is black.", "The cat is white."), check_pair("A red cat.", "Two cats.")
        ('kept', 'earlier')
    """
    left, right = _words(chosen), _words(rejected)
    if not left or not right:
        return "empty"
    if left == right:
        return "identical"
    shared = 0
    while shared < min(len(left), len(right)) and left[shared] == right[shared]:
        shared += 1
    if shared == min(len(left), len(right)):
        return "added"
    if max(len(left), len(right)) - shared > last_words:
        return "earlier"
    # Otherwise the last token alone tells the two answers apart.
    return "kept" if _ending(chosen) == _ending(rejected) else "ending"


def align_ending(rejected: str, chosen: str) -> str:
    """The rejected answer with the final punctuation of the chosen one.

    Example:
        >>> align_ending("A dog!", "A cat.")
        'A dog.'
    """
    return _ENDING.sub("", rejected) + _ending(chosen)


def rewrite_pairs(
    pairs: Sequence[AnswerPair],
    rewriter: Rewriter,
    *,
    journal: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[AnswerPair]:
    """The pairs with their rejected answers rewritten.

    Args:
        pairs: The pairs.
        rewriter: Returns the new rejected answer of a pair.
        journal: A file that each answer is appended to at once, as JSON lines. A pair that is in it with the
            same question and answers is not rewritten again, so that an interrupted run can be continued.
        progress: Called with 1 after each pair.

    Raises:
        DataError: The journal cannot be read.
    """
    answers = _read_journal(journal) if journal is not None and journal.is_file() else {}
    rewritten = []
    for pair in pairs:
        answer = answers.get(_identity(pair))
        if answer is None:
            answer = align_ending(rewriter(pair).strip(), pair.chosen)
            if journal is not None:
                _append(journal, pair, answer)
        rewritten.append(AnswerPair(pair.row, pair.question, pair.chosen, answer, pair.image_path))
        if progress is not None:
            progress(1)
    return rewritten


def prepare_minimal_pairs(
    source: Path,
    out: Path,
    *,
    rewriter: Rewriter | None = None,
    rewriter_name: str | None = None,
    last_words: int = 2,
    limit: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> PreparedDataset:
    """Write `out/minimal_pairs/pairs.parquet`, and every pair's verdict in `verdicts.parquet`.

    Args:
        source: A prepared file of chosen and rejected answers, such as `rlhf_v/qa.parquet`, or JSON
            lines of question, chosen and rejected.
        out: The data folder.
        rewriter: Rewrites the rejected answers before the filter; None leaves them as they are.
        rewriter_name: For the provenance and for the name of the journal.
        last_words: How many words at the end may differ.
        limit: At most this many pairs of the source.
        progress: Called with 1 after each rewritten pair.

    Raises:
        DataError: The source has no pairs, or none of them is minimal.
    """
    if last_words < 1:
        raise DataError(f"last_words={last_words}: expected at least 1")
    folder = out / "minimal_pairs"
    rows = _read_source(source)[:limit]
    pairs = [_pair(row, f"{source}, row {number}") for number, row in enumerate(rows)]
    if rewriter is not None:
        folder.mkdir(parents=True, exist_ok=True)
        slug = re.sub(r"\W+", "-", rewriter_name or "rewriter").strip("-")
        pairs = rewrite_pairs(pairs, rewriter, journal=folder / f"rewrites_{slug}.jsonl", progress=progress)
    verdicts = [check_pair(pair.chosen, pair.rejected, last_words=last_words) for pair in pairs]
    counts = Counter(verdicts)
    notes = [f"{counts[name]} of {len(pairs)}: {reason}" for name, reason in REASONS.items() if counts[name]]
    if not counts["kept"]:
        raise DataError(f"no minimal pair in {source} ({'; '.join(notes)})")
    kept = [
        {**row, "choices": [pair.chosen, pair.rejected]}
        for row, pair, verdict in zip(rows, pairs, verdicts, strict=True)
        if verdict == "kept"
    ]
    verdict_rows = [
        {"row": pair.row, "chosen": pair.chosen, "rejected": pair.rejected, "verdict": verdict}
        for pair, verdict in zip(pairs, verdicts, strict=True)
    ]
    return write_dataset(
        folder,
        {"pairs": kept, "verdicts": verdict_rows},
        source={
            "file": str(source),
            "sha256": sha256(source),
            "rewriter": rewriter_name,
            "last_words": last_words,
        },
        notes=notes,
    )


def _read_source(source: Path) -> list[Row]:
    if source.suffix.lower() != ".jsonl":
        return read_rows(source)
    rows: list[Row] = []
    for number, record in enumerate(read_records(source)):
        record.require("question", "chosen", "rejected")
        path = record.optional_text("image_path")
        rows.append(
            {
                "row": record.integer("row") if record.has("row") else number,
                "question": record.text("question"),
                "choices": [record.text(name, blank=True) for name in ("chosen", "rejected")],
                "target": 0,
                **({"image_path": path} if path else {}),
            }
        )
    return rows


def _pair(row: Row, where: str) -> AnswerPair:
    record, choices = Record(row, where), row.get("choices")
    if not isinstance(choices, list) or len(choices) != 2 or row.get("target") != 0:
        raise DataError(f"{where}: expected choices of two answers, the first one truthful (target 0)")
    chosen, rejected = (as_text(choice, f"{where}: one of its choices", blank=True) for choice in choices)
    image_path = record.optional_text("image_path")
    return AnswerPair(record.integer("row"), record.text("question"), chosen, rejected, image_path)


def _words(answer: str) -> list[str]:
    words = (_EDGES.sub("", word).lower() for word in answer.split())
    return [word for word in words if word]


def _ending(answer: str) -> str:
    match = _ENDING.search(answer)
    return match[0].strip() if match else ""


def _identity(pair: AnswerPair) -> tuple[int, str, str, str]:
    return pair.row, pair.question, pair.chosen, pair.rejected


def _read_journal(journal: Path) -> dict[tuple[int, str, str, str], str]:
    """The answers by their pairs; a last line without an end, left by a kill, is removed from the file."""
    content = read_bounded(journal, MAX_DATASET_BYTES)
    complete = content[: content.rfind(b"\n") + 1]
    if complete != content:
        write_atomic(journal, complete)
    answers = {}
    for record in read_records(journal):
        question, chosen, rejected, rewritten = (
            record.text(name, blank=True) for name in ("question", "chosen", "rejected", "rewritten")
        )
        answers[record.integer("row"), question, chosen, rejected] = rewritten
    return answers


def _append(journal: Path, pair: AnswerPair, answer: str) -> None:
    record = {"row": pair.row, "question": pair.question, "chosen": pair.chosen, "rejected": pair.rejected}
    with journal.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**record, "rewritten": answer}, ensure_ascii=False) + "\n")
