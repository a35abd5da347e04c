"""Functions that the YAML files in `tasks/lm_eval` name: data sets, the answer filter and the metrics.

lm-eval passes `--metadata` and `--model_args` to the functions that make data sets. Each of them takes the
options that it knows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from truthgate_eval.data import halueval, phd
from truthgate_eval.data.store import read_rows
from truthgate_eval.errors import DataError, TaskError
from truthgate_eval.files import read_text
from truthgate_eval.metrics.clusters import find_cluster
from truthgate_eval.metrics.log_odds import (
    LogOddsAnswer,
    acc_at_threshold,
    auroc,
    document_values,
    log_loss_offset,
    log_odds_of_spellings,
)
from truthgate_eval.metrics.yes_no import Prediction, f1, parse_yes_no, precision, recall, unparsed, yes_ratio
from truthgate_eval.packaged.scenes_dataset import scenes_file
from truthgate_eval.probing.surface import equally_long, without_final_punctuation

# The aggregations that the YAML files name in this module.
__all__ = [
    "acc_at_threshold",
    "auroc",
    "f1",
    "log_loss_offset",
    "precision",
    "recall",
    "unparsed",
    "yes_ratio",
]

_FIELD = re.compile(r"\{(knowledge|question|answer)\}")
_OPTIONS = ("halueval_path", "exclude_rows_of", "subset")


def load_halueval_qa(**metadata: Any) -> dict[str, Dataset]:
    """HaluEval's question answering."""
    return _halueval("qa", metadata)


def load_halueval_dialogue(**metadata: Any) -> dict[str, Dataset]:
    """HaluEval's dialogues."""
    return _halueval("dialogue", metadata)


def load_halueval_summarization(**metadata: Any) -> dict[str, Dataset]:
    """HaluEval's summaries."""
    return _halueval("summarization", metadata)


def load_halueval_qa_official(**metadata: Any) -> dict[str, Dataset]:
    """HaluEval's question answering with the prompt of the file `instruction_file`."""
    instruction = _read_instruction(metadata.get("instruction_file"))
    documents = halueval.documents("qa", **_known(metadata))
    prompted = [{**doc, "prompt": official_prompt(instruction, doc)} for doc in documents]
    return {"test": Dataset.from_list(prompted)}


def load_phd_text(**metadata: Any) -> dict[str, Dataset]:
    """PhD's questions with the context that contradicts their image."""
    return {"test": Dataset.from_list(phd.documents(metadata.get("phd_path")))}


def load_scenes_text(**_metadata: Any) -> dict[str, Dataset]:
    """The questions of `probe_scenes`, with the caption in place of the image."""
    return {"test": Dataset.from_list(read_rows(scenes_file("probe")))}


def official_prompt(instruction: str, doc: dict[str, Any]) -> str:
    """The prompt for a document: a template with its fields filled in, or an instruction and HaluEval's form.

    Example:
        >>> official_prompt("{question} {answer}? Yes or No:", {"question": "Who?", "answer": "He"})
        'Who? He? Yes or No:'
    """
    if _FIELD.search(instruction):
        return _FIELD.sub(lambda field: doc[field[1]], instruction)
    return f"{instruction}\n\n#Question#: {doc['question']}\n#Answer#: {doc['answer']}\n#Your Judgement#:"


def parse_answers(resps: Sequence[Sequence[str]], docs: Sequence[Any]) -> list[list[str | None]]:
    """An answer filter of lm-eval: every answer becomes yes, no or None, the samples' `filtered_resps`."""
    del docs
    return [[parse_yes_no(text) for text in answers] for answers in resps]


def score_answer(doc: dict[str, Any], results: Sequence[str | None]) -> dict[str, Any]:
    """lm-eval's `process_results`: what one document contributes to every metric.

    Args:
        doc: The document.
        results: Its answer, as `parse_answers` returns it.
    """
    prediction: Prediction = (doc["hallucinated"], results[0])
    names = ("f1", "precision", "recall", "yes_ratio", "unparsed")
    return {"acc": float(prediction[0] == prediction[1]), **dict.fromkeys(names, prediction)}


def score_log_odds(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """`process_results` of the tasks that read log-odds: what one document contributes to every metric.

    Args:
        doc: The document.
        results: Log-likelihood of Yes and of No, each with whether it is the greedy answer.
    """
    (yes, _), (no, _) = results
    cluster = find_cluster(doc)
    # The document is beside it in the file of samples, so that a digest is enough.
    name = hashlib.sha256(str(cluster.name if cluster else doc).encode("utf-8", "surrogatepass")).hexdigest()
    answer: LogOddsAnswer = {
        "log_odds": log_odds_of_spellings([yes], [no]),
        "gold": doc["hallucinated"],
        "cluster": name[:16],
    }
    values = document_values([answer])
    return {
        **{metric: float(values[metric][0]) for metric in ("acc", "log_loss", "yes_ratio")},
        "f1": (answer["gold"], "yes" if values["yes_ratio"][0] else "no"),
        **dict.fromkeys(("auroc", "acc_at_threshold", "log_loss_offset"), answer),
    }


def _read_instruction(given: Any) -> str:
    """The text of the prompt file. A template must have the question and the answer.

    Raises:
        TaskError: There is no such file, or it cannot be a prompt.
    """
    path = Path(str(given)).expanduser() if given else None
    if path is None or not path.is_file():
        raise TaskError(
            f"halueval_qa_official needs a prompt file (instruction_file={given}): give "
            '--metadata \'{"instruction_file": "FILE"}\', HaluEval\'s own instruction or a template '
            "with {question} and {answer}"
        )
    try:
        text = read_text(path).strip()
    except DataError as error:
        raise TaskError(f"instruction_file={given} is not a text file: {error}") from error
    if not text:
        raise TaskError(f"instruction_file={given} is empty")
    fields = set(_FIELD.findall(text))
    if fields and not {"question", "answer"} <= fields:
        missing = " and ".join(f"{{{name}}}" for name in ("question", "answer") if name not in fields)
        raise TaskError(f"instruction_file={given} is a template without {missing}")
    return text


def _halueval(task: str, metadata: dict[str, Any]) -> dict[str, Dataset]:
    found = halueval.documents(task, **_known(metadata))
    matched = metadata.get("surface_matched") or False
    if not isinstance(matched, bool):
        raise TaskError(f"surface_matched={matched}: expected true or false")
    return {"test": Dataset.from_list(surface_matched(found) if matched else found)}


def surface_matched(documents: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """HaluEval's documents whose two answers are equally long, without the punctuation that ends an answer.

    How long an answer is, and how it ends, then says nothing of whether it is hallucinated; compare
    `truthgate probe --surface-matched`.

    Raises:
        TaskError: In all documents the answers differ by more than one word.
    """
    kept = [
        {
            **doc,
            "answer": without_final_punctuation(doc["answer"]),
            "choices": [without_final_punctuation(answer) for answer in doc["choices"]],
        }
        for doc in documents
        if equally_long(doc["choices"])
    ]
    if not kept:
        raise TaskError(
            f"surface_matched leaves nothing: in all {len(documents)} documents the answers differ by more "
            "than one word"
        )
    return kept


def _known(metadata: dict[str, Any]) -> dict[str, Any]:
    return {name: metadata[name] for name in _OPTIONS if metadata.get(name) is not None}
