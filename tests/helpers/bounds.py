"""The bounds within which files of strangers are refused: a second of this process, and 200 MB."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from truthgate_eval.errors import TruthGateError

SECONDS, BYTES = 1.0, 200e6


def check_refused(read: Callable[[], Any], message: str | None) -> None:
    """Expect our error of one line, within the bounds."""
    tracemalloc.start()
    before = time.process_time()
    try:
        with pytest.raises(TruthGateError, match=message) as caught:
            read()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - before < SECONDS and peak < BYTES
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
