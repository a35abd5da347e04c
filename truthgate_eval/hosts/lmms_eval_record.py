"""Writes the gate into lmms-eval's results.

lmms-eval 0.7.3 has no place for what a model says about itself: `config` holds the command line's text
only (its source has a TODO for `get_model_info`). So its `evaluate`, the one function that sees both the
model and the results, is wrapped: a gated model's `gate` and `model_info` stand at the results' top level.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

log = logging.getLogger(__name__)


def install() -> None:
    """Wrap `lmms_eval.evaluator.evaluate`, once; runs of other models are left as they are."""
    from lmms_eval import evaluator

    plain = evaluator.evaluate
    if hasattr(plain, "_truthgate"):
        return

    @functools.wraps(plain)
    def evaluate(*args: Any, **options: Any) -> Any:
        model: Any = options.get("lm", args[0] if args else None)
        settings = getattr(model, "gate_settings", None)
        if settings is not None and settings.scores is not None and options.get("response_cache") is not None:
            log.warning(
                "--use_cache keys on the text of model_args: after scores=%s has been rewritten, "
                "use another cache",
                settings.source,
            )
        results = plain(*args, **options)
        if settings is not None and results is not None:
            results.update(model.get_model_info())
        return results

    evaluate._truthgate = True  # type: ignore[attr-defined]
    evaluator.evaluate = evaluate
