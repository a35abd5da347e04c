"""The options of `truthgate study` that need reading: they are checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from truthgate_eval.errors import TaskError, TruthGateError
from truthgate_eval.harness.lmms_eval.registry import MODELS

if TYPE_CHECKING:
    from truthgate_eval.attribution.study_documents import Role
    from truthgate_eval.gating.scores import TruthScores

KINDS = (
    "accuracy", "auroc", "context-gain", "gradient", "learned", "divergence", "direct-effect", "copy",
)  # fmt: skip


def supports_images(model: str) -> bool:
    """Whether a model of this type is asked lmms-eval's tasks."""
    return model == "vlm" or model in MODELS


def parse_own_tasks(
    tasks: str, choose_tasks: str | None, test_tasks: str | None, targets: tuple[float, ...]
) -> dict[Role, tuple[str, ...]]:
    """The tasks of the roles that do not take a part of `--tasks`.

    Args:
        tasks: Of `--tasks`, comma-separated.
        choose_tasks: Of `--choose_tasks`.
        test_tasks: Of `--test_tasks`.
        targets: The divergences of `--kl`.

    Raises:
        TaskError: Options do not go together.
    """
    if choose_tasks is not None and len(targets) == 1:
        raise TaskError(
            f"--choose_tasks {choose_tasks}: with one --kl ({targets[0]:g}) no strength is chosen, leave it "
            "out"
        )
    given: dict[Role, str | None] = {"choosing": choose_tasks, "test": test_tasks}
    options = {"choosing": "--choose_tasks", "test": "--test_tasks"}
    seen = {name: "--tasks" for name in tasks.split(",")}
    found: dict[Role, tuple[str, ...]] = {}
    for role, text in given.items():
        if text is None:
            continue
        found[role] = tuple(text.split(","))
        for name in found[role]:
            if name in seen:
                raise TaskError(
                    f"{options[role]} {name}: {seen[name]} has it, too, and no document may be in both. "
                    "Without an option for a role, --tasks is divided"
                )
        seen |= dict.fromkeys(found[role], options[role])
    return found


def check_base_tasks(
    base_tasks: Sequence[str],
    tasks: str,
    own_tasks: Mapping[Role, tuple[str, ...]],
    targets: tuple[float, ...],
) -> None:
    """Refuse scores of a base that are made on the documents on which gates are tested or chosen.

    Args:
        base_tasks: Each `--base_tasks`, comma-separated.
        tasks: Of `--tasks`; roles without tasks of their own take a part of them.
        own_tasks: See `parse_own_tasks`.
        targets: The divergences of `--kl`; with one, nothing is chosen.

    Raises:
        TaskError: A task is in both.
    """
    options: dict[Role, str] = {"test": "--test_tasks", "choosing": "--choose_tasks"}
    used: dict[str, str] = {}
    for role, option in options.items():
        if role in own_tasks:
            used |= dict.fromkeys(own_tasks[role], option)
        elif role == "test" or len(targets) > 1:
            used |= dict.fromkeys(tasks.split(","), "--tasks")
    for name in ",".join(base_tasks).split(","):
        if name in used:
            raise TaskError(
                f"--base_tasks {name}: {used[name]} has it, too, and gates are tested or chosen there"
            )


def parse_scores(given: list[str]) -> tuple[list[str], dict[str, TruthScores]]:
    """Kinds to make, and scores of files by name.

    Args:
        given: Each `--score`.

    Raises:
        TaskError: It is no kind and no file.
        ScoresError: A file holds no scores.
    """
    from truthgate_eval.analysis.named_path import split_named_path
    from truthgate_eval.gating.scores import TruthScores

    kinds: list[str] = []
    files: dict[str, TruthScores] = {}
    for text in given:
        if text in KINDS:
            kinds.append(text)
            continue
        name, path = split_named_path(text, "a kind or NAME=FILE")
        if name is None and not Path(path).is_file():
            raise TaskError(f"--score {text}: expected one of {', '.join(KINDS)}, or NAME=FILE")
        files[name or Path(path).stem] = TruthScores.resolve(path)
    return kinds, files


def parse_kl(text: str) -> tuple[float, ...]:
    """The divergences of `--kl`, in nats.

    Raises:
        TruthGateError: They are no positive numbers.

    Example:
        >>> parse_kl("0.005,0.02")
        (0.005, 0.02)
    """
    try:
        targets = tuple(float(part) for part in text.split(","))
    except ValueError:
        targets = (0.0,)
    if not all(0 < target < float("inf") for target in targets):
        raise TruthGateError(f"--kl {text}: expected positive numbers such as 0.005,0.02")
    return targets
