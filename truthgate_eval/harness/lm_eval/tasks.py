"""What the YAML files in `tasks/lm_eval` refer to: data sets, the answer filter and the metrics.

lm-eval hands its `--metadata` (with model_args among it) to the functions that make data sets;
each takes the options that it knows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from truthgate_eval.data import halueval, phd
from truthgate_eval.data.store import read_rows
from truthgate_eval.errors import TaskError
from truthgate_eval.metrics.yes_no import Pair, f1, parse_yes_no, precision, recall, unparsed, yes_ratio
from truthgate_eval.packaged.scenes_dataset import scenes_file

__all__ = ["f1", "precision", "recall", "unparsed", "yes_ratio"]

_FIELD = re.compile(r"\{(knowledge|question|answer)\}")
_OPTIONS = ("halueval_path", "exclude_rows_of", "subset")


def qa(**metadata: Any) -> dict[str, Dataset]:
    """HaluEval's question answering."""
    return _halueval("qa", metadata)


def dialogue(**metadata: Any) -> dict[str, Dataset]:
    """HaluEval's dialogues."""
    return _halueval("dialogue", metadata)


def summarization(**metadata: Any) -> dict[str, Dataset]:
    """HaluEval's summaries."""
    return _halueval("summarization", metadata)


def qa_official(**metadata: Any) -> dict[str, Dataset]:
    """HaluEval's question answering under a prompt that is read from a file."""
    instruction = _read_instruction(metadata.get("instruction_file"))
    documents = halueval.documents("qa", **_known(metadata))
    prompted = [{**doc, "prompt": official_prompt(instruction, doc)} for doc in documents]
    return {"test": Dataset.from_list(prompted)}


def phd_text(**metadata: Any) -> dict[str, Dataset]:
    """PhD's questions under their contradicting context."""
    return {"test": Dataset.from_list(phd.documents(metadata.get("phd_path")))}


def scenes_text(**_metadata: Any) -> dict[str, Dataset]:
    """The questions of `probe_scenes`, with the picture's caption for the picture."""
    return {"test": Dataset.from_list(read_rows(scenes_file("probe")))}


def official_prompt(instruction: str, doc: dict[str, Any]) -> str:
    """A template with its fields filled in, or an instruction followed by HaluEval's own form."""
    if _FIELD.search(instruction):
        return _FIELD.sub(lambda field: doc[field[1]], instruction)
    return f"{instruction}\n\n#Question#: {doc['question']}\n#Answer#: {doc['answer']}\n#Your Judgement#:"


def parse_answers(resps: Sequence[Sequence[str]], docs: Sequence[Any]) -> list[list[str | None]]:
    """lm-eval's filter: every answer becomes yes, no or None, and is kept so in the samples."""
    del docs
    return [[parse_yes_no(text) for text in answers] for answers in resps]


def score_answer(doc: dict[str, Any], results: Sequence[str | None]) -> dict[str, Any]:
    """One document's part of every metric."""
    pair: Pair = (doc["hallucinated"], results[0])
    metrics: dict[str, Any] = dict.fromkeys(("f1", "precision", "recall", "yes_ratio", "unparsed"), pair)
    return {"acc": float(pair[0] == pair[1]), **metrics}


def _read_instruction(given: Any) -> str:
    """The prompt file's text; a template must show the question and the answer."""
    path = Path(str(given)).expanduser() if given else None
    if path is None or not path.is_file():
        raise TaskError(
            f"halueval_qa_official needs a prompt file (instruction_file={given}): give "
            '--metadata \'{"instruction_file": "FILE"}\', HaluEval\'s own instruction or a template '
            "with {question} and {answer}"
        )
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise TaskError(f"instruction_file={given} is not a text file: {error}") from error
    if not text:
        raise TaskError(f"instruction_file={given} is empty")
    fields = set(_FIELD.findall(text))
    if fields and not {"question", "answer"} <= fields:
        missing = " and ".join(f"{{{name}}}" for name in ("question", "answer") if name not in fields)
        raise TaskError(f"instruction_file={given} is a template without {missing}")
    return text


def _halueval(task: str, metadata: dict[str, Any]) -> dict[str, Dataset]:
    return {"test": Dataset.from_list(halueval.documents(task, **_known(metadata)))}


def _known(metadata: dict[str, Any]) -> dict[str, Any]:
    return {name: metadata[name] for name in _OPTIONS if metadata.get(name) is not None}
