"""Functions that the YAML files of the captioning tasks name: prompt, objects in an answer, and CHAIR."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from truthgate_eval.data.chair import OBJECTS, read_vocabulary
from truthgate_eval.data.store import prepared_file
from truthgate_eval.harness.cache_keys import digest
from truthgate_eval.metrics.chair import Vocabulary, find_objects
from truthgate_eval.packaged.scenes_dataset import scenes_file

Doc = Mapping[str, Any]


def doc_to_text(doc: Doc, lmms_eval_specific_kwargs: Mapping[str, str] | None = None) -> str:
    """The prompt, which is the same for every image."""
    del doc
    return (lmms_eval_specific_kwargs or {}).get("prompt", "")


def caption_scorer(data_set: str) -> Callable[[Doc, Sequence[str]], dict[str, Any]]:
    """lmms-eval's `process_results` with the objects of a data set: `chair`, `chair_poll` or `scenes`.

    Raises:
        DataError: The data set is not prepared.
    """
    return functools.partial(score_caption, vocabulary=_vocabulary_of(data_set))


def caption_metadata(data_set: str) -> dict[str, Any]:
    """A captioning task's metadata, with a digest of the names that it counts.

    Raises:
        DataError: The data set is not prepared.
    """
    return {"version": 1.0, "objects": digest(dict(_vocabulary_of(data_set).objects))[:16]}


def _vocabulary_of(data_set: str) -> Vocabulary:
    file = scenes_file(OBJECTS) if data_set == "scenes" else prepared_file(f"{data_set}/{OBJECTS}")
    return _vocabulary(file, file.stat().st_mtime_ns)


@functools.cache
def _vocabulary(file: Path, changed: int) -> Vocabulary:
    """The vocabulary of a file; `changed` is when it was written."""
    del changed
    return read_vocabulary(file)


def score_caption(doc: Doc, results: Sequence[str], vocabulary: Vocabulary) -> dict[str, Any]:
    """lmms-eval's `process_results`: what one caption contributes to every metric.

    The entry of `chair_s` has the objects, and the image for lmms-eval's clustered standard error. CHAIR_i
    and recall are ratios of sums: their entries have no `score`, whose mean would be another figure, and
    lmms-eval writes no standard error for them.
    """
    found = find_objects(results[0], doc["objects"], vocabulary)
    _, hallucinating, mentions, wrong, annotated, recalled, words = found.counts
    return {
        "chair_s": {"score": float(hallucinating), "image": doc["image"], **found.as_dict()},
        "chair_i": {"part": wrong, "whole": mentions},
        "recall": {"part": recalled, "whole": annotated},
        "length": float(words),
    }


def share_of_captions(entries: Sequence[Mapping[str, Any]]) -> float:
    """CHAIR_s: the share of captions that mention an object which is not on the image."""
    return sum(float(entry["score"]) for entry in entries) / len(entries)


def ratio_of_sums(entries: Sequence[Mapping[str, int]]) -> float:
    """CHAIR_i and recall, over all captions together; NaN where there is nothing to divide by."""
    whole = sum(entry["whole"] for entry in entries)
    return sum(entry["part"] for entry in entries) / whole if whole else float("nan")
