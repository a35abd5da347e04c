"""What a probing run is told: where activations are read, and how probes are fitted and scored.

Nothing here imports torch or scikit-learn, so that `truthgate probe --help` can show the choices at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from truthgate_eval.errors import ProbeError, TaskError, check_choice

SolverName = Literal["adamw", "newton"]
SplitUnit = Literal["question", "sequence"]
ScoreName = Literal["accuracy", "auroc", "context-gain"]
ControlName = Literal["surface", "no-context", "swapped-context", "shuffled-labels"]
ImageCondition = Literal["document", "none", "black"]
ProbeFormat = Literal["task", "authors"]

ACCURACY: ScoreName = "accuracy"
AUROC: ScoreName = "auroc"
CONTEXT_GAIN: ScoreName = "context-gain"
SURFACE: ControlName = "surface"
NO_CONTEXT: ControlName = "no-context"
SWAPPED: ControlName = "swapped-context"
SHUFFLED: ControlName = "shuffled-labels"
CONTROLS: tuple[ControlName, ...] = get_args(ControlName)
DOCUMENT: ImageCondition = "document"
NONE: ImageCondition = "none"
BLACK: ImageCondition = "black"
# As the task is evaluated; or without chat template and instruction, with yes and no in lower case.
TASK_FORMAT: ProbeFormat = "task"
AUTHORS_FORMAT: ProbeFormat = "authors"

# What each solver can be told, with the defaults. adamw's are those of the released code.
SOLVER_SETTINGS: dict[SolverName, dict[str, float]] = {
    "adamw": {"lr": 1e-2, "weight_decay": 1e-3, "epochs": 200, "batch_size": 512},
    "newton": {"C": 1.0, "tol": 1e-8, "max_iter": 100},
}


@dataclass(frozen=True)
class ProbeConfig:
    """How every head's probe is fitted, cross-validated and scored (`docs/method.md#truth-scores`).

    Attributes:
        solver: `adamw` (the paper's) or `newton` (scikit-learn's objective, to convergence).
        folds: 5 for the mean over five folds, 1 for one 4 : 1 split.
        split: `question` keeps a question's sequences on one side of a split; `sequence` does not, as in
            the released code.
        seed: Chooses the folds. Nothing else is random.
        seeds: On how many assignments of folds the probes are fitted (`seed`, `seed` + 1, ...). The scores
            are the mean.
        score: What becomes the truth score: validation `accuracy`, `auroc`, or `context-gain`, the accuracy
            minus that of the control `no-context`.
        settings: Settings of the solver in place of the defaults in `SOLVER_SETTINGS`.

    Raises:
        ProbeError: A choice does not exist, or a number is out of its range.

    Example:
        >>> config = ProbeConfig(solver="newton", settings={"C": 0.1})
        >>> config.solver_settings
        {'C': 0.1, 'tol': 1e-08, 'max_iter': 100}
        >>> ProbeConfig(folds=0)
        Traceback (most recent call last):
        ...
        truthgate_eval.errors.ProbeError: folds=0: expected 1 (one 4:1 split) or more
    """

    solver: SolverName = "adamw"
    folds: int = 5
    split: SplitUnit = "question"
    seed: int = 42
    seeds: int = 1
    score: ScoreName = ACCURACY
    settings: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("solver", self.solver, get_args(SolverName), ProbeError)
        check_choice("score", self.score, get_args(ScoreName), ProbeError)
        check_folds(self.folds, self.split, self.seed)
        if self.seeds < 1:
            raise ProbeError(f"seeds={self.seeds}: expected 1 or more")
        check_folds(self.folds, self.split, self.seed + self.seeds - 1)
        _check_settings(self.solver, self.settings)

    @property
    def solver_settings(self) -> dict[str, float]:
        """All settings of the solver."""
        return {**SOLVER_SETTINGS[self.solver], **self.settings}


@dataclass(frozen=True)
class CaptureConfig:
    """Where activations are read, and how much of the machine that may take.

    Attributes:
        site: `post` reads the output of the attention output projection, `pre` its input.
        batch_size: A batch has at most as many tokens as this many of the longest sequences; `auto` (text
            models only) finds a number that fits.
        memory: GiB of activations above which they go to a file. Default: half of the free memory.
        scratch: Folder of that file. Default: the system's folder for temporary files.

    Raises:
        GateError: The site does not exist.
        ProbeError: A number is out of its range.
    """

    site: Literal["post", "pre"] = "post"
    batch_size: int | Literal["auto"] = 8
    memory: float | None = None
    scratch: Path | None = None

    def __post_init__(self) -> None:
        from truthgate_eval.gating.attention_layout import check_site  # imports torch

        check_site(self.site)
        if self.batch_size != "auto" and not (isinstance(self.batch_size, int) and self.batch_size > 0):
            raise ProbeError(f"batch_size={self.batch_size}: expected 1 or more, or auto")
        check_memory(self.memory)


def check_folds(folds: int, split: str, seed: int) -> None:
    """Raise `ProbeError` unless there are such folds."""
    check_choice("split", split, get_args(SplitUnit), ProbeError)
    if folds < 1:
        raise ProbeError(f"folds={folds}: expected 1 (one 4:1 split) or more")
    if not 0 <= seed < 2**32:
        raise ProbeError(f"seed={seed}: expected 0 to 2**32 - 1")


def check_memory(memory: float | None) -> None:
    """Raise `ProbeError` unless `memory` is a number of GiB, or None."""
    if memory is not None and not memory >= 0:
        raise ProbeError(f"memory={memory}: expected a number of GiB, 0 or more")


def check_control(name: str) -> ControlName:
    """The control of that name.

    Raises:
        ProbeError: There is none.
    """
    return check_choice("control", name, CONTROLS, ProbeError)


def check_condition(image: str) -> ImageCondition:
    """The image condition of that name.

    Raises:
        TaskError: There is none.
    """
    if image not in get_args(ImageCondition):
        raise TaskError(f"--image {image} is none of {', '.join(get_args(ImageCondition))}")
    return image  # type: ignore[return-value]


def _check_settings(solver: SolverName, settings: Mapping[str, Any]) -> None:
    defaults = SOLVER_SETTINGS[solver]
    if unknown := sorted(settings.keys() - defaults.keys()):
        raise ProbeError(f"solver {solver} has no setting {', '.join(unknown)}: it has {', '.join(defaults)}")
    for name, value in settings.items():
        types = (int,) if isinstance(defaults[name], int) else (int, float)
        may_be_zero = name == "weight_decay" and value == 0
        if not (isinstance(value, types) and math.isfinite(value) and (value > 0 or may_be_zero)):
            raise ProbeError(f"{name}={value!r}: expected a positive {types[-1].__name__}")
