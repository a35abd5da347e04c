"""Functions and values that the YAML files in `tasks/lmms_eval` name: data sets, prompts and metrics."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from truthgate_eval.data.easy_vqa import easy_vqa_file
from truthgate_eval.data.images import open_image
from truthgate_eval.data.poll import PROBE
from truthgate_eval.data.store import PREPARE_COMMANDS, prepared_file
from truthgate_eval.errors import DataError, TaskError, TruthGateError
from truthgate_eval.files import sha256
from truthgate_eval.files.parquet import iterate_rows
from truthgate_eval.harness.cache_keys import digest
from truthgate_eval.harness.choices import as_yes_no
from truthgate_eval.harness.command_line import exit_with_error
from truthgate_eval.harness.lmms_eval.captions import caption_metadata, caption_scorer
from truthgate_eval.metrics import pope
from truthgate_eval.metrics.log_odds import (
    LogOddsAnswer,
    acc_at_threshold,
    auroc,
    document_values,
    log_loss_offset,
    log_odds_of_spellings,
)
from truthgate_eval.metrics.yes_no import f1, precision, recall, yes_ratio
from truthgate_eval.packaged.scenes_dataset import scenes_file
from truthgate_eval.paths import data_dir

log = logging.getLogger(__name__)

# The aggregations that the YAML files name in this module.
__all__ = ["acc_at_threshold", "auroc", "f1", "log_loss_offset", "precision", "recall", "yes_ratio"]

PARSER_VARIABLE = "TRUTHGATE_POPE_PARSER"

Doc = Mapping[str, Any]


def on_load(name: str) -> Any:
    """The value of `!function truthgate_on_load.NAME` in a task file, computed when the task is loaded.

    lmms-eval passes no option of the command line to a task, so the user's choices come from the environment.

    * `data_pope_coco_random` and the like: `dataset_kwargs` with the path of the prepared file;
    * `data_scenes_random`, `data_easy_vqa_test` and the like: the same; a missing file is made first;
    * `data_poll_probe`, `poll_probe_metadata`: for the questions set aside for probing, or for those of the
      random split where none were;
    * `score_answer`: `process_results` with the parser that `$TRUTHGATE_POPE_PARSER` names;
    * `pope_metadata`: metadata with the name of that parser;
    * `score_caption_chair` and the like: `process_results` with the objects of a data set;
    * `caption_metadata_chair` and the like: metadata with a digest of their names.

    Raises:
        AttributeError: There is no such value.
        DataError: The data set is not prepared.
        TaskError: There is no such parser.
    """
    try:
        if name.startswith("data_scenes_"):
            return _dataset_kwargs(scenes_file(name.removeprefix("data_scenes_")))
        if name.startswith("data_easy_vqa_"):
            return _dataset_kwargs(easy_vqa_file(name.removeprefix("data_easy_vqa_")))
        if name == "data_poll_probe":
            return _dataset_kwargs(prepared_file(_poll_for_probing()))
        if name == "poll_probe_metadata":
            return {"version": 1.0, "data": _poll_for_probing()}
        if name.startswith("data_"):
            return _dataset_kwargs(prepared_file(_dataset_name(name.removeprefix("data_"))))
        if name == "score_answer":
            return scorer(chosen_parser())
        if name.startswith("score_caption_"):
            return caption_scorer(name.removeprefix("score_caption_"))
        if name.startswith("caption_metadata_"):
            return caption_metadata(name.removeprefix("caption_metadata_"))
        if name == "pope_metadata":
            return {"version": 1.0, "parser": chosen_parser()}
    except TruthGateError as error:
        exit_with_error(error)
    raise AttributeError(name)


def chosen_parser() -> pope.Parser:
    """The parser that `$TRUTHGATE_POPE_PARSER` names, or `official`.

    Raises:
        TaskError: There is no such parser.
    """
    try:
        return pope.check_parser(os.environ.get(PARSER_VARIABLE) or "official")
    except TaskError as error:
        raise TaskError(f"{PARSER_VARIABLE}: {error}") from None


def doc_to_visual(doc: Doc) -> list[Any]:
    """The document's image."""
    try:
        return [open_image(doc["image_path"])]
    except DataError as error:
        exit_with_error(error)


def doc_to_text(doc: Doc, lmms_eval_specific_kwargs: Mapping[str, str] | None = None) -> str:
    """The question between lmms-eval's pre_prompt and post_prompt."""
    around = lmms_eval_specific_kwargs or {}
    return f"{around.get('pre_prompt', '')}{doc['question']}{around.get('post_prompt', '')}"


def capitalized_choices(doc: Doc) -> list[str]:
    """A document's answers; yes and no begin with a capital, as chat models begin them."""
    return [text.strip().capitalize() if as_yes_no(text) else text for text in doc["choices"]]


def scorer(parser: pope.Parser) -> Callable[[Doc, Sequence[str]], dict[str, Any]]:
    """lmms-eval's `process_results` with one of POPE's parsers."""
    return functools.partial(score_answer, parser=parser)


def score_answer(doc: Doc, results: Sequence[str], parser: pope.Parser = "official") -> dict[str, Any]:
    """lmms-eval's `process_results`: what one document contributes to every metric.

    The entry of `acc` has the parsed answer, and the image for lmms-eval's clustered standard error. The
    other entries have no `score`: lmms-eval would report the standard error of the accuracy as theirs.
    """
    answer = pope.parse_answer(results[0], doc["answer"], parser)
    accuracy_entry = {
        "score": float(answer.parsed == answer.gold),
        "parsed": answer.parsed,
        "gold": answer.gold,
        "image": doc["image"],
        "question_id": doc["question_id"],
    }
    predictions = dict.fromkeys(("precision", "recall", "f1", "yes_ratio"), answer.prediction)
    return {"acc": accuracy_entry, **predictions, "unparsed": float(answer.unparsed)}


def score_log_odds(doc: Doc, results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """`process_results` of the tasks that read log-odds: what one document contributes to every metric.

    Args:
        doc: The document.
        results: For each choice, those of yes before those of no, -log P(choice) and whether it is the greedy
            answer.

    Raises:
        TaskError: The model gives texts, as every model of lmms-eval but the gated ones does
            (`patches.keep_loss_pairs`).
    """
    if not all(isinstance(result, tuple | list) and len(result) == 2 for result in results):
        exit_with_error(
            TaskError(
                "tasks that read log-odds need a gated model: --model gated_vlm --model_args scores=none,... "
                "is the model without a gate"
            )
        )
    log_probabilities = [-loss for loss, _ in results]
    half = len(results) // 2
    answer: LogOddsAnswer = {
        "log_odds": log_odds_of_spellings(log_probabilities[:half], log_probabilities[half:]),
        "gold": doc["answer"],
        "cluster": doc["image"],
    }
    values = document_values([answer])
    parsed = "yes" if values["yes_ratio"][0] else "no"
    accuracy_entry = {
        "score": float(values["acc"][0]),
        "parsed": parsed,
        "gold": answer["gold"],
        "image": doc["image"],
        "question_id": doc["question_id"],
    }
    return {
        "acc": accuracy_entry,
        "f1": (answer["gold"], parsed),
        **{metric: float(values[metric][0]) for metric in ("log_loss", "yes_ratio")},
        **dict.fromkeys(("auroc", "acc_at_threshold", "log_loss_offset"), answer),
    }


def mean_accuracy(entries: Sequence[Mapping[str, Any]]) -> float:
    """Share of right answers, from the `acc` entries of `score_answer`."""
    return sum(entry["score"] for entry in entries) / len(entries)


def _dataset_kwargs(file: Path) -> dict[str, Any]:
    """`dataset_kwargs` of a Parquet file, with a hash of its content and of its images' sizes and dates.

    datasets takes a file that it has read before by path and date, and other models' answers come from
    lmms-eval's response cache by the task's settings. The description is part of both keys.
    """
    images = sorted({row["image_path"] for row in iterate_rows(file) if row.get("image_path")})
    content = digest([sha256(file), [_size_and_date(image) for image in images]])
    return {"data_files": {"test": str(file)}, "description": f"sha256 {content}"}


def _size_and_date(image: str) -> tuple[int, int] | None:
    """Size and date of change of an image's file; None where it is missing, which opening it will say."""
    try:
        found = os.stat(image)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _poll_for_probing() -> str:
    """The data set of the poll's questions for probing, or the random split where none were set aside."""
    if (data_dir() / "poll" / f"{PROBE}.parquet").is_file():
        return f"poll/{PROBE}"
    prepared_file("poll/random")
    log.warning(
        "probing on the questions that poll_random evaluates: `truthgate data poll --probe-share 0.3` "
        "sets images aside for probing"
    )
    return "poll/random"


def _dataset_name(name: str) -> str:
    """The name of a prepared data set: `pope/coco_random` for `pope_coco_random`."""
    for folder in sorted(PREPARE_COMMANDS, key=len, reverse=True):  # chair_poll before chair
        if name.startswith(f"{folder}_"):
            return f"{folder}/{name.removeprefix(f'{folder}_')}"
    raise AttributeError(name)
