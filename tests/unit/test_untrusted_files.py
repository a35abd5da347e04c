"""Files from strangers: every reader ends in a valid object or in our own error, within bounds."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from helpers.mutated_content import mutate
from helpers.readers import READERS, folder_of, read_content
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CORPUS = Path(__file__).parents[1] / "corpus"
MOST_SECONDS = 1.0  # of the process, so that a busy machine fails no test


def timed(name: str, content: bytes) -> tuple[float, str | None]:
    before = time.process_time()
    message = read_content(READERS[name], content)
    return time.process_time() - before, message


def check(name: str, content: bytes) -> None:
    spent, message = timed(name, content)
    if spent >= MOST_SECONDS:  # once more: a busy machine, or Python's collector, may have been slow
        spent, message = timed(name, content)
    assert spent < MOST_SECONDS
    if message is not None:
        assert "\n" not in message  # `one_line` cuts it, see test_escaping.py


@pytest.mark.parametrize("name", READERS)
def test_valid_files_are_read(name: str) -> None:
    assert [read_content(READERS[name], content) for content in READERS[name].seeds()] == [None] * len(
        READERS[name].seeds()
    )


def kept_cases() -> list[tuple[str, Path]]:
    """Inputs that a fuzzer found, by their reader: new coverage, or an error that was not ours."""
    return [(name, file) for name in READERS for file in sorted((CORPUS / folder_of(name)).glob("*"))]


@pytest.mark.parametrize(("name", "file"), kept_cases(), ids=lambda value: getattr(value, "name", value))
def test_what_a_fuzzer_found_stays_mended(name: str, file: Path) -> None:
    check(name, file.read_bytes())


@pytest.mark.parametrize("name", READERS)
@given(rng=st.randoms(use_true_random=False))
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_changed_file_ends_in_a_valid_object_or_in_our_error(name: str, rng: random.Random) -> None:
    check(name, mutate(READERS[name], rng))


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_three_thousand_changed_files_end_so_too(name: str) -> None:
    rng = random.Random(name)
    for _ in range(3000):
        check(name, mutate(READERS[name], rng))
