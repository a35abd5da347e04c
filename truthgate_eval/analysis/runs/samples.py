"""One line of a host's sample file: a document, the model's answer, and whether it was right.

lm-eval and lmms-eval write different lines; both become `Record`s here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truthgate_eval.errors import DataError
from truthgate_eval.metrics.yes_no import parse_yes_no

# Where a task keeps a document's verdict: the first name that a sample has.
_VERDICTS = ("acc", "pope_accuracy", "accuracy", "exact_match")
_QUESTIONS = ("question", "dialogue_history", "document", "query", "prompt")
_GOLD, _PARSED = ("gold", "ground_truth"), ("parsed", "prediction")


@dataclass(frozen=True)
class SampleResult:
    """What one run made of one document.

    Attributes:
        doc_id: The document's number in its run; another run may number it otherwise.
        filter: The answer filter of lm-eval, "none" elsewhere.
        identity: A digest of the document without its prompt; equal for equal documents.
        cluster: What the document shares with others: its picture or its question.
        cluster_kind: `image`, `question`, or `document` where neither is recorded.
        question: The question as text, for people.
        answer: The model's text.
        gold: The right answer.
        parsed: yes, no, or None; None also where the task does not ask for yes or no.
        is_yes_no: Whether the task asks for yes or no.
        unparsed: Whether the answer says neither yes nor no, or both.
        right: Whether the answer is right.
        prompt: A digest of the prompt.
        picture: File of the document's picture, or None.
    """

    doc_id: int
    filter: str
    identity: str
    cluster: str
    cluster_kind: str
    question: str
    answer: str
    gold: str
    parsed: str | None
    is_yes_no: bool
    unparsed: bool
    correct: bool
    prompt: str
    image: str | None


def read_samples(file: Path, task: Mapping[str, Any]) -> list[SampleResult]:
    """The records of a sample file, in its order.

    Args:
        file: A `.jsonl` that either host wrote.
        task: The task's entry in `configs` of the results file.

    Returns:
        One record a line; none where the task has no verdict of right or wrong per document.

    Raises:
        DataError: A line is cut off, not JSON, or no sample; or a document stands there twice.
    """
    records: list[SampleResult] = []
    seen: dict[tuple[str, int], int] = {}
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file}, line {number}"
            sample = _parse(line, where)
            place = (str(sample.get("filter", "none")), sample["doc_id"])
            if place in seen:
                raise DataError(
                    f"{where}: document {place[1]} stands there a second time (first in line {seen[place]}): "
                    "two runs wrote into one file; run again into an empty folder"
                )
            seen[place] = number
            verdict = _verdict(sample)
            if verdict is None:
                return []
            try:
                make = _from_lm_eval if "doc" in sample else _from_lmms_eval
                records.append(make(sample, verdict, task))
            except (KeyError, TypeError, IndexError) as error:
                raise DataError(f"{where} is no sample of either host: {error!r}") from error
    return records


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        sample = json.loads(line)
    except ValueError as error:  # not JSON, or not even text
        raise DataError(
            f"{where} is cut off or not JSON ({str(error).splitlines()[0]}): the file is damaged, run again"
        ) from error
    if not isinstance(sample, dict) or not isinstance(sample.get("doc_id"), int):
        raise DataError(f"{where} is no sample: it has no doc_id")
    return sample


def _verdict(sample: Mapping[str, Any]) -> bool | None:
    """Right or wrong; None where the sample does not say."""
    found = next((sample[name] for name in _VERDICTS if name in sample), None)
    score = found.get("score") if isinstance(found, Mapping) else found
    return bool(score) if isinstance(score, bool | int | float) and score in (0, 1) else None


def _from_lm_eval(sample: Mapping[str, Any], right: bool, task: Mapping[str, Any]) -> SampleResult:
    del task
    # A prompt that a task keeps in the document is no part of what the document is.
    doc = {name: value for name, value in sample["doc"].items() if name != "prompt"}
    identity = _digest(doc, sample.get("target"))
    kind, cluster = _cluster(doc, identity)
    gold, parsed, is_yes_no = _pair(sample)
    first = next(iter(sample["resps"]), [""])
    answer = first[0] if isinstance(first, Sequence) and not isinstance(first, str) else first
    return SampleResult(
        doc_id=sample["doc_id"],
        filter=str(sample.get("filter", "none")),
        identity=identity,
        cluster=cluster,
        cluster_kind=kind,
        question=next((str(sample["doc"][name]) for name in _QUESTIONS if name in sample["doc"]), ""),
        answer=str(answer),
        gold=gold if is_yes_no else str(sample.get("target")),
        parsed=parsed,
        is_yes_no=is_yes_no,
        unparsed=is_yes_no and parsed is None,
        correct=right,
        prompt=str(sample.get("prompt_hash") or _digest(sample.get("arguments"))),
        image=None,
    )


def _from_lmms_eval(sample: Mapping[str, Any], right: bool, task: Mapping[str, Any]) -> SampleResult:
    """lmms-eval leaves the document out, and its doc_hash is the same for all: the question names it."""
    around = task.get("lmms_eval_specific_kwargs") or {}
    prompt = str(sample.get("input", ""))
    question = prompt.removeprefix(str(around.get("pre_prompt") or ""))
    question = question.removesuffix(str(around.get("post_prompt") or ""))
    media = [name for name in sample.get("input_media", ()) if isinstance(name, str)]
    verdict = next((sample[name] for name in _VERDICTS if name in sample), None)
    image = verdict.get("image") if isinstance(verdict, Mapping) else None
    identity = _digest(question, sample.get("target"), image)
    gold, parsed, is_yes_no = _pair(sample)
    responses = sample["filtered_resps"]
    answer = str(responses if isinstance(responses, str) else responses[0])
    return SampleResult(
        doc_id=sample["doc_id"],
        filter="none",
        identity=identity,
        cluster=str(image) if image else identity,
        cluster_kind="image" if image else "document",
        question=question,
        answer=answer,
        gold=gold if is_yes_no else str(sample.get("target")),
        parsed=parsed,
        is_yes_no=is_yes_no,
        unparsed=is_yes_no and bool(sample.get("unparsed", parse_yes_no(answer) is None)),
        correct=right,
        prompt=_digest(prompt),
        image=media[-1] if media else None,
    )


def _cluster(doc: Mapping[str, Any], identity: str) -> tuple[str, str]:
    """What ties a document to others: (kind, value)."""
    for name in ("image", "image_id"):
        if isinstance(doc.get(name), str | int):
            return "image", str(doc[name])
    for name in _QUESTIONS:
        if isinstance(doc.get(name), str):
            return "question", doc[name]
    return "document", identity


def _pair(sample: Mapping[str, Any]) -> tuple[str, str | None, bool]:
    """(right answer, parsed answer, whether this is a yes-or-no task) of a sample."""
    verdict = next((sample[name] for name in _VERDICTS if name in sample), None)
    pair = sample.get("f1")
    if isinstance(verdict, Mapping):
        gold = next((verdict[name] for name in _GOLD if name in verdict), None)
        pair = [gold, next((verdict[name] for name in _PARSED if name in verdict), None)]
    if not isinstance(pair, list) or len(pair) != 2 or pair[0] not in ("yes", "no"):
        return "", None, False
    return pair[0], pair[1] if pair[1] in ("yes", "no") else None, True


def _digest(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
