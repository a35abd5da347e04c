"""One line of a file of samples: a document, the model's answer, and whether it was right.

lm-eval and lmms-eval write different lines (`docs/harnesses.md#results-files`); both become `SampleResult`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from truthgate_eval.errors import DataError
from truthgate_eval.files import read_json_lines
from truthgate_eval.metrics.chair import CaptionObjects
from truthgate_eval.metrics.clusters import IMAGE_FIELDS, QUESTION_FIELDS, ClusterKind, find_cluster
from truthgate_eval.metrics.log_odds import LogOddsAnswer
from truthgate_eval.metrics.yes_no import YES_NO, parse_yes_no

# Of captions: whether it mentions an object that is not on its image, with the objects.
_HALLUCINATES = "chair_s"
# Where a task keeps a document's verdict: the first name that a sample has.
_VERDICTS = ("acc", "pope_accuracy", "accuracy", "exact_match", _HALLUCINATES)
# What lmms-eval writes between a system instruction and the task's description, unless the task says so.
_FEWSHOT_DELIMITER = "\n\n"
_GOLD, _PARSED = ("gold", "ground_truth"), ("parsed", "prediction")


@dataclass(frozen=True)
class SampleResult:
    """The result of one run on one document.

    Attributes:
        doc_id: The document's number in its run; another run may number it differently.
        filter: The filter of lm-eval, "none" elsewhere.
        identity: A digest of the document without its prompt; equal for equal documents.
        cluster: The image or question that the document shares with others, see `metrics.clusters`.
        cluster_kind: `image`, `question`, or `document` where neither is recorded.
        question: The question as text, for display.
        answer: The model's text.
        gold: The right answer.
        parsed: yes, no, or None; None also where the task is not a yes/no task.
        is_yes_no: Whether the right answers of the task are yes and no.
        unparsed: Whether the answer has neither yes nor no as a word, or both.
        correct: Whether the answer is right; a caption is where all objects that it mentions are on its
            image.
        prompt: A digest of the prompt.
        image: File of the document's image, or None.
        log_odds: The entry of a task that reads log-odds of yes against no; None for every other task.
        caption: The objects of a captioning task's answer and of its image; None for every other task.
    """

    doc_id: int
    filter: str
    identity: str
    cluster: str
    cluster_kind: ClusterKind
    question: str
    answer: str
    gold: str
    parsed: str | None
    is_yes_no: bool
    unparsed: bool
    correct: bool
    prompt: str
    image: str | None
    log_odds: LogOddsAnswer | None = None
    caption: CaptionObjects | None = None


def read_samples(file: Path, task: Mapping[str, Any], *, system_instruction: str = "") -> list[SampleResult]:
    """The samples of a file, in its order.

    Args:
        file: A `.jsonl` that lm-eval or lmms-eval wrote.
        task: The task's entry in `configs` of the results file.
        system_instruction: Of the run. lmms-eval's own models have it in front of every question.

    Returns:
        One result per line; none if the task does not mark each document right or wrong.

    Raises:
        DataError: A line is cut off, not JSON, or not a sample; or a document occurs twice.
    """
    results: list[SampleResult] = []
    lines: dict[tuple[str, int], int] = {}
    for number, sample in read_json_lines(file):
        where = f"{file}, line {number}"
        if not isinstance(sample.get("doc_id"), int):
            raise DataError(f"{where} is not a sample: it has no doc_id")
        document = (str(sample.get("filter", "none")), sample["doc_id"])
        if document in lines:
            raise DataError(
                f"{where}: document {document[1]} occurs a second time (first in line {lines[document]}): "
                "two runs wrote into one file; run again into an empty folder"
            )
        lines[document] = number
        correct = _is_correct(sample)
        if correct is None:
            return []
        try:
            if "doc" in sample:
                results.append(_from_lm_eval(sample, correct))
            else:
                results.append(_from_lmms_eval(sample, correct, task, system_instruction))
        except (AttributeError, KeyError, TypeError, IndexError) as error:
            raise DataError(f"{where} is not a sample of lm-eval or lmms-eval: {error!r}") from error
    return results


def _verdict(sample: Mapping[str, Any]) -> Any:
    """What the task says of the answer: a number, or a mapping with the number and more; None without."""
    return next((sample[name] for name in _VERDICTS if name in sample), None)


def _is_correct(sample: Mapping[str, Any]) -> bool | None:
    """Whether the answer is right; None where the sample does not say."""
    verdict = _verdict(sample)
    score = verdict.get("score") if isinstance(verdict, Mapping) else verdict
    if not isinstance(score, bool | int | float) or score not in (0, 1):
        return None
    return bool(score) != (next(name for name in _VERDICTS if name in sample) == _HALLUCINATES)


def _from_lm_eval(sample: Mapping[str, Any], correct: bool) -> SampleResult:
    # The rendered prompt does not belong to the identity of the document.
    document = {name: value for name, value in sample["doc"].items() if name != "prompt"}
    identity = _digest(document, sample.get("target"))
    cluster = find_cluster(sample["doc"])
    gold, parsed, is_yes_no = _gold_and_parsed(sample)
    first = next(iter(sample["resps"]), [""])
    answer = first[0] if isinstance(first, Sequence) and not isinstance(first, str) else first
    log_odds = _log_odds(sample)
    return SampleResult(
        doc_id=sample["doc_id"],
        filter=str(sample.get("filter", "none")),
        identity=identity,
        cluster=cluster.value if cluster else identity,
        cluster_kind=cluster.kind if cluster else "document",
        question=next((str(sample["doc"][name]) for name in QUESTION_FIELDS if name in sample["doc"]), ""),
        answer=str(answer) if log_odds is None else _log_odds_text(log_odds),
        gold=gold if is_yes_no else str(sample.get("target")),
        parsed=parsed,
        is_yes_no=is_yes_no,
        unparsed=is_yes_no and parsed is None,
        correct=correct,
        prompt=str(sample.get("prompt_hash") or _digest(sample.get("arguments"))),
        image=None,
        log_odds=log_odds,
    )


def _from_lmms_eval(
    sample: Mapping[str, Any], correct: bool, task: Mapping[str, Any], system_instruction: str
) -> SampleResult:
    """A sample without its document, whose doc_hash is the same for all: the question identifies it."""
    kwargs = task.get("lmms_eval_specific_kwargs")
    texts = kwargs if isinstance(kwargs, Mapping) else {}
    prompt = str(sample.get("input", ""))
    question = prompt.removeprefix(system_instruction)
    if question != prompt and task.get("description"):
        question = question.removeprefix(str(task.get("fewshot_delimiter", _FEWSHOT_DELIMITER)))
    question = question.removeprefix(str(texts.get("pre_prompt") or ""))
    question = question.removesuffix(str(texts.get("post_prompt") or ""))
    media = [name for name in sample.get("input_media") or () if isinstance(name, str)]
    verdict = _verdict(sample)
    recorded = verdict if isinstance(verdict, Mapping) else {}
    # Of the document, the sample has only what the verdict has.
    cluster = find_cluster({name: recorded[name] for name in IMAGE_FIELDS if name in recorded})
    identity = _digest(question, sample.get("target"), recorded.get("image"))
    gold, parsed, is_yes_no = _gold_and_parsed(sample)
    responses = sample["filtered_resps"]
    log_odds = _log_odds(sample)
    answer = str(responses if isinstance(responses, str) else responses[0])
    if log_odds is not None:
        answer = _log_odds_text(log_odds)
    return SampleResult(
        doc_id=sample["doc_id"],
        filter="none",
        identity=identity,
        cluster=cluster.value if cluster else identity,
        cluster_kind=cluster.kind if cluster else "document",
        question=question,
        answer=answer,
        gold=gold if is_yes_no else str(sample.get("target")),
        parsed=parsed,
        is_yes_no=is_yes_no,
        unparsed=is_yes_no and bool(sample.get("unparsed", parse_yes_no(answer) is None)),
        correct=correct,
        prompt=_digest(prompt),
        image=media[-1] if media else None,
        log_odds=log_odds,
        caption=CaptionObjects.from_dict(recorded) if "mentioned" in recorded else None,
    )


def _log_odds(sample: Mapping[str, Any]) -> LogOddsAnswer | None:
    """The entry of a task that reads log-odds (`metrics.log_odds`), None for another task."""
    entry = sample.get("auroc")
    if not isinstance(entry, Mapping) or entry.get("gold") not in YES_NO:
        return None
    log_odds = entry.get("log_odds")
    if isinstance(log_odds, bool) or not isinstance(log_odds, int | float) or not math.isfinite(log_odds):
        raise TypeError(f"its log-odds are {log_odds!r}")
    return {"log_odds": float(log_odds), "gold": entry["gold"], "cluster": str(entry.get("cluster"))}


def _log_odds_text(answer: LogOddsAnswer) -> str:
    """What stands for the answer of a task without one, such as `yes (log-odds +1.25)`."""
    return f"{'yes' if answer['log_odds'] >= 0 else 'no'} (log-odds {answer['log_odds']:+.2f})"


def _gold_and_parsed(sample: Mapping[str, Any]) -> tuple[str, str | None, bool]:
    """(right answer, parsed answer, whether this is a yes/no task) of a sample."""
    verdict, pair = _verdict(sample), sample.get("f1")
    if isinstance(verdict, Mapping):
        gold = next((verdict[name] for name in _GOLD if name in verdict), None)
        pair = [gold, next((verdict[name] for name in _PARSED if name in verdict), None)]
    if not isinstance(pair, list) or len(pair) != 2 or pair[0] not in YES_NO:
        return "", None, False
    return pair[0], pair[1] if pair[1] in YES_NO else None, True


def _digest(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
