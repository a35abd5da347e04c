"""A wrap around lmms-eval's `evaluate`, the one function that sees a model and its results together.

lmms-eval 0.7.3 has no place for what a model says about itself: `config` holds the command line's text
only (its source says that `get_model_info` is still to come). And it makes a text of every
(loss, greedy) pair, so that no multiple-choice task can be scored.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)


def install_evaluate_patch() -> None:
    """Wrap `lmms_eval.evaluator.evaluate`, once; runs of other models are left as they are.

    A gated model's results get its `gate` and `model_info` at their top level, and thereby the
    results file does.
    """
    from lmms_eval import evaluator

    plain = evaluator.evaluate
    if hasattr(plain, "_truthgate"):
        return

    @functools.wraps(plain)
    def evaluate(*args: Any, **options: Any) -> Any:
        model: Any = options.get("lm", args[0] if args else None)
        settings = getattr(model, "gate_settings", None)
        if settings is None:
            return plain(*args, **options)
        if settings.scores is not None and options.get("response_cache") is not None:
            log.warning(
                "--use_cache keys on the text of model_args: once scores=%s is rewritten, use another cache",
                settings.source,
            )
        with _pairs_kept(evaluator):
            results = plain(*args, **options)
        if results is not None:
            results.update(model.get_model_info())
        return results

    evaluate._truthgate = True  # type: ignore[attr-defined]
    evaluator.evaluate = evaluate


@contextmanager
def _pairs_kept(evaluator: Any) -> Iterator[None]:
    """While a gated model runs, let (loss, greedy) pairs reach the task as they are."""
    plain = getattr(evaluator, "unwrap_generation_output", None)
    if plain is None:
        yield
        return

    def unwrap(output: Any) -> Any:
        # A list where the pair comes back from the host's cache, which is JSON.
        if isinstance(output, list | tuple) and len(output) == 2 and isinstance(output[0], float):
            return tuple(output), None
        return plain(output)

    evaluator.unwrap_generation_output = unwrap
    try:
        yield
    finally:
        evaluator.unwrap_generation_output = plain
