"""lmms-eval's response cache, `--use_cache`, with keys that see the model, its gate and the images.

lmms-eval keys an answer on the text of `--model_args`, the task's settings, the document's number and the
request's text. See `docs/harnesses.md#caches`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lmms_eval.api.instance import Instance


class KeyedResponseCache:
    """A response cache of lmms-eval, as `lmms_eval.evaluator.evaluate` uses it, for one gated model."""

    def __init__(self, cache: Any, model: Any) -> None:
        """Take the model's fingerprint.

        Args:
            cache: `lmms_eval.caching.response_cache.ResponseCache`.
            model: A `GatedVLM` that answers, gated as for the run.

        Raises:
            ModelError: The model has no fingerprint.
        """
        self._cache = cache
        self._fingerprint = model.fingerprint()

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
        answers: list[Any] = self._cache.execute(lm, reqtype, keyed)
        return answers
