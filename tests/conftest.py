"""Shared paths and fixtures. Real data is read from ../shared/data where it is there."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# No test may reach for a hub: what is not on this machine must come from a package or a config.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Workers of pytest-xdist share the cores; torch reads this when it is imported, subprocesses inherit it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _loud_again() -> Iterator[None]:
    """Undo what a harness's run, or a model made under a harness's name, leaves quiet after a test."""
    lm_eval = logging.getLogger("lm_eval")  # which lm-eval's first run cuts off from the root logger
    level, propagate, handlers = lm_eval.level, lm_eval.propagate, [*lm_eval.handlers]
    yield
    lm_eval.setLevel(level)
    lm_eval.propagate, lm_eval.handlers[:] = propagate, handlers
    quiet = sys.modules.get("truthgate_eval.harness.quiet")
    if quiet is not None:
        quiet._PROCESS.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository; its absence skips the test, with the reason."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real data beside the repository (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny Llama (3 layers x 4 heads) with a byte-level tokenizer."""
    from helpers import tiny_models as factories

    return factories.save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def halueval_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder in HaluEval's format, written here: sums, with right and wrong results."""
    import json

    folder = tmp_path_factory.mktemp("halueval")
    rows = [
        {"knowledge": f"{i} and {i} are {2 * i}.", "question": f"How much are {i} and {i}?",
         "right_answer": f"{2 * i}", "hallucinated_answer": f"They are {2 * i + 1}."}
        for i in range(60)
    ]  # fmt: skip
    (folder / "qa_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


@pytest.fixture(scope="session")
def vlm_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Gives the folder of a tiny vision-language model by its name in `factories_vlm.NAMES`."""
    from helpers import tiny_vision_models as factories_vlm

    @functools.cache
    def folder(name: str) -> str:
        return factories_vlm.save(tmp_path_factory.mktemp(name), name)

    return folder
