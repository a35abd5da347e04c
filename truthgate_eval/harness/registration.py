"""Do the installed harnesses find our models and tasks? `truthgate doctor` asks."""

from __future__ import annotations

import importlib.metadata
import sys

from truthgate_eval.errors import TruthGateError
from truthgate_eval.paths import shipped


def startup_file_ran() -> bool:
    """Whether Python ran `startup/_truthgate_autoload.py` when this process started."""
    return "_truthgate_autoload" in sys.modules


def lm_eval_model() -> str:
    """The class that lm-eval resolves `gated_hf` to, as text.

    Raises:
        Exception: Whatever lm-eval raises where it has no such model, or where its installation is broken.
    """
    from lm_eval.api.registry import get_model

    return f"gated_hf -> {get_model('gated_hf').__module__}"


def lm_eval_tasks() -> str:
    """The names of our tasks that lm-eval finds.

    Raises:
        TruthGateError: It finds none.
    """
    from lm_eval.tasks import TaskManager

    ours = {path.stem for path in (shipped("tasks") / "lm_eval").glob("[a-z]*.yaml")}
    found = sorted(ours & set(TaskManager().all_tasks))
    if not found:
        raise TruthGateError("lm-eval finds none of our tasks")
    return ", ".join(found)


def lmms_eval_models() -> str:
    """Our entry points of the group from which lmms-eval reads models.

    Raises:
        TruthGateError: There are none.
    """
    entries = importlib.metadata.entry_points(group="lmms_eval.models")
    ours = [entry.value for entry in entries if entry.value.startswith("truthgate_eval")]
    if not ours:
        raise TruthGateError("no entry point of ours in the group lmms_eval.models")
    return ", ".join(ours)
