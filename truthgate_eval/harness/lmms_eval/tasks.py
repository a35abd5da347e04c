"""What the YAML files in `tasks/lmms_eval` refer to: prepared data sets, prompts and metrics."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from truthgate_eval.data.images import open_image
from truthgate_eval.data.poll import PROBE
from truthgate_eval.data.store import COMMANDS, prepared_file
from truthgate_eval.errors import DataError, TaskError, TruthGateError
from truthgate_eval.harness.command_line import exit_with_error
from truthgate_eval.metrics import pope
from truthgate_eval.metrics import yes_no as judgement
from truthgate_eval.packaged.scenes_dataset import scenes_file
from truthgate_eval.paths import data_dir

log = logging.getLogger(__name__)

PARSER_VARIABLE = "TRUTHGATE_POPE_PARSER"

Doc = Mapping[str, Any]


def on_load(name: str) -> Any:
    """The value of `!function truthgate_on_load.NAME` in a task file, made when the task is loaded.

    lmms-eval has no option that reaches a task, so what a user chooses comes from the environment.

    * `data_pope_coco_random` and its like: `dataset_kwargs` that point at the prepared file;
    * `data_scenes_random` and its like: the same, drawn where they are not there;
    * `data_poll_probe`, `poll_probe_metadata`: the questions that were set aside for probing, or else those
      of the random split;
    * `score_answer`: `process_results` with the parser that `$TRUTHGATE_POPE_PARSER` names;
    * `pope_metadata`: metadata that says which parser that is.

    Raises:
        AttributeError: There is no such value.
        DataError: The data set is not prepared.
        TaskError: There is no such parser.
    """
    try:
        if name.startswith("data_scenes_"):
            return {"data_files": {"test": str(scenes_file(name.removeprefix("data_scenes_")))}}
        if name == "data_poll_probe":
            return _files(_poll_to_probe())
        if name == "poll_probe_metadata":
            return {"version": 1.0, "data": _poll_to_probe()}
        if name.startswith("data_"):
            return _files(_set_name(name.removeprefix("data_")))
        if name == "score_answer":
            return scorer(chosen_parser())
        if name == "pope_metadata":
            return {"version": 1.0, "parser": chosen_parser()}
    except TruthGateError as error:
        exit_with_error(error)
    raise AttributeError(name)


def chosen_parser() -> pope.Parser:
    """POPE's parser: `$TRUTHGATE_POPE_PARSER`, or `official`."""
    try:
        return pope.check_parser(os.environ.get(PARSER_VARIABLE) or "official")
    except TaskError as error:
        raise TaskError(f"{PARSER_VARIABLE}: {error}") from None


def doc_to_visual(doc: Doc) -> list[Any]:
    """The document's picture."""
    try:
        return [open_image(doc["image_path"])]
    except DataError as error:
        exit_with_error(error)


def doc_to_text(doc: Doc, lmms_eval_specific_kwargs: Mapping[str, str] | None = None) -> str:
    """The question between the host's usual pre_prompt and post_prompt."""
    around = lmms_eval_specific_kwargs or {}
    return f"{around.get('pre_prompt', '')}{doc['question']}{around.get('post_prompt', '')}"


def scorer(parser: pope.Parser) -> Callable[[Doc, Sequence[str]], dict[str, Any]]:
    """lmms-eval's `process_results` with one of POPE's parsers."""
    return functools.partial(score_answer, parser=parser)


def score_answer(doc: Doc, results: Sequence[str], parser: pope.Parser = "official") -> dict[str, Any]:
    """One document's part of every metric.

    The accuracy's part has the parsed answer and the picture, which the host's clustered standard
    error needs. The other parts have no `score`, or the host would report the accuracy's standard
    error as theirs.
    """
    reading = pope.parse_answer(results[0], doc["answer"], parser)
    right = {
        "score": float(reading.parsed == reading.gold),
        "parsed": reading.parsed,
        "gold": reading.gold,
        "image": doc["image"],
        "question_id": doc["question_id"],
    }
    pairs = dict.fromkeys(("precision", "recall", "f1", "yes_ratio"), reading.pair)
    return {"acc": right, **pairs, "unparsed": float(reading.unparsed)}


def mean_accuracy(parts: Sequence[Mapping[str, Any]]) -> float:
    """Share of right answers."""
    return sum(part["score"] for part in parts) / len(parts)


precision, recall, f1, yes_ratio = judgement.precision, judgement.recall, judgement.f1, judgement.yes_ratio


def _files(data: str) -> dict[str, Any]:
    return {"data_files": {"test": str(prepared_file(data))}}


def _poll_to_probe() -> str:
    """The poll's questions for probing; without any set aside, those that poll_random evaluates."""
    if (data_dir() / "poll" / f"{PROBE}.parquet").is_file():
        return f"poll/{PROBE}"
    prepared_file("poll/random")
    log.warning(
        "probing on the questions that poll_random evaluates: `truthgate data poll --probe-share 0.3` "
        "sets pictures aside for probing"
    )
    return "poll/random"


def _set_name(name: str) -> str:
    """`pope/coco_random` for `pope_coco_random`."""
    for folder in COMMANDS:
        if name.startswith(f"{folder}_"):
            return f"{folder}/{name.removeprefix(f'{folder}_')}"
    raise AttributeError(name)
