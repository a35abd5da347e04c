"""lmms-eval's response cache, `--use_cache`, with keys that see the model, its gate and the images.

lmms-eval keys an answer on the text of `--model_args`, the task's settings, the document's number and the
request's text. See `docs/harnesses.md#caches`. It writes a run's answers when all are there, to files that it
reads only after a run that has ended well. Here they are written part by part, and found after a kill.
"""

from __future__ import annotations

import dataclasses
import logging
import sqlite3
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import Instance

log = logging.getLogger(__name__)

# Requests that are answered, and then written, together: those about one image are neighbours.
_PART = 256
# lmms-eval 0.7.3's names: each run's files, and the sign that they have been put into the cache's own file.
_RUNS, _ANSWERS, _MERGED = "runs", "rank_*.db", ".merged"


class KeyedResponseCache:
    """A response cache of lmms-eval, as `lmms_eval.evaluator.evaluate` uses it, for one gated model."""

    def __init__(self, cache: Any, model: Any) -> None:
        """Take the model's fingerprint, and the answers of runs that were interrupted.

        Args:
            cache: `lmms_eval.caching.response_cache.ResponseCache`.
            model: A `GatedVLM` that answers, gated as for the run.

        Raises:
            ModelError: The model has no fingerprint.
        """
        self._cache = cache
        self._fingerprint = model.fingerprint()
        _read_interrupted_runs(cache)

    def execute(self, lm: Any, reqtype: str, requests: list[Instance]) -> list[Any]:
        """Answers in order: those that the cache has for this very model, text and images, else the model's.

        The cache has no answers in several rounds: what is asked in the next one is up to the task's code.

        Args:
            lm: The model.
            reqtype: The type of the requests, the model's method.
            requests: The requests.

        Raises:
            DataError: An image cannot be read.
        """
        if reqtype == "generate_until_multi_round":
            return list(lm.generate_until_multi_round(requests))
        lm.check_images(requests)  # before the keys, which are made of the images one by one
        keyed = []
        for request in requests:
            # The name of the task is part of lmms-eval's key, and our models do not read it from there.
            task = f"{request.task_name}@{lm.request_digest(reqtype, request, self._fingerprint)}"
            keyed.append(dataclasses.replace(request, metadata={**request.metadata, "task": task}))
        answers: list[Any] = []
        for start in range(0, len(keyed), _PART):
            answers += self._cache.execute(lm, reqtype, keyed[start : start + _PART])
        return answers


def _read_interrupted_runs(cache: Any) -> None:
    """Put the answers of runs that have not ended well into the file of this run; their keys tell them apart.

    They may also be of a run that is still going on, in another process.
    """
    for folder in sorted(Path(cache._cache_root, _RUNS).glob("*")):
        if folder.name == cache._run_id or (folder / _MERGED).exists():
            continue
        for file in sorted(folder.glob(_ANSWERS)):
            try:
                count = cache.merge_shards([str(file)], cache.db_path)
            except (sqlite3.Error, UnicodeError) as error:
                log.warning("%s cannot be read (%s): its answers are computed again", file, error)
            else:
                log.info("%d answers of an interrupted run are found in %s", count, file)
