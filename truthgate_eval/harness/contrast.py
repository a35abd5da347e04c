"""Context contrast: a choice's log-probability with its context against the one without.

Context-aware decoding (CAD; Shi et al. 2023, arXiv 2305.14739) takes the context out of a text,
visual contrastive decoding (VCD; Leng et al. 2023, arXiv 2311.16922) adds noise to the image. Both decode
from

    (1 + alpha) * log p(token | context) - alpha * log p(token | no context)

up to a constant that makes it a distribution. Choices of one token have that constant in common, so log-odds
are exactly CAD's; choices of several tokens are compared without it. VCD's cut-off for implausible tokens is
left out. A baseline that a gate must beat: see `docs/method.md#baselines`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from truthgate_eval.errors import GateError, TaskError, check_choice
from truthgate_eval.gating.gate_arguments import is_missing, parse_number
from truthgate_eval.paths import shipped

ContrastImage = Literal["black", "none"]
CONTRAST_IMAGES: tuple[ContrastImage, ...] = get_args(ContrastImage)
# The model arguments: of lm-eval's models the first only.
CONTRAST_ARGUMENTS = ("contrast", "contrast_image")


@dataclass(frozen=True)
class Contrast:
    """How strongly a model's choices are contrasted, and with which image.

    Attributes:
        alpha: Strength; CAD's experiments have 0.5 and 1.
        image: What stands in for a document's image: a black one of its size, or none.

    Example:
        >>> Contrast(alpha=0.5).combine(with_context=-1.0, without_context=-2.0)
        -0.5
    """

    alpha: float
    image: ContrastImage = "black"

    @classmethod
    def parse(cls, arguments: Mapping[str, object]) -> Contrast | None:
        """The contrast of a harness's model arguments; None without one, and for `contrast=0`.

        Args:
            arguments: May have `contrast` and `contrast_image`; None, "None" and "" are missing.

        Raises:
            GateError: A value is not one that exists.
        """
        given = {name: arguments.get(name) for name in CONTRAST_ARGUMENTS}
        chosen = {name: value for name, value in given.items() if not is_missing(value)}
        if "contrast" not in chosen:
            if chosen:
                raise GateError("contrast_image has no effect without contrast=ALPHA, such as contrast=0.5")
            return None
        alpha = parse_number("contrast", chosen["contrast"])
        if alpha < 0:
            raise GateError(
                f"contrast={chosen['contrast']} would favour what the context makes unlikely: expected a "
                "number from 0 on, such as contrast=0.5"
            )
        image = check_choice(
            "contrast_image", chosen.get("contrast_image", "black"), CONTRAST_IMAGES, GateError
        )
        return cls(alpha, image) if alpha else None

    def combine(self, with_context: float, without_context: float) -> float:
        """(1 + alpha) * with - alpha * without.

        Args:
            with_context: Log-probability of a choice in nats, or its loss: the sum or the mean over its
                tokens, which are the same in both.
            without_context: The same where the context is taken away.
        """
        return (1 + self.alpha) * with_context - self.alpha * without_context

    def check_output_type(
        self, task: str, output_type: str, harness: Literal["lm_eval", "lmms_eval"]
    ) -> None:
        """Refuse a task that is not scored by the log-likelihoods of answers.

        Args:
            task: The task's name.
            output_type: Its type, as the harness calls it.
            harness: The harness that has the task.

        Raises:
            TaskError: The task generates text or scores whole documents; the message names one that does not.
        """
        if output_type in ("multiple_choice", "loglikelihood"):
            return
        does = "generates text" if output_type.startswith("generate") else f"is of type {output_type}"
        twin = f"{task}_logodds"
        is_ours = (shipped("tasks") / harness / f"{twin}.yaml").is_file()
        instead = twin if is_ours else "a task whose choices are scored, such as those named *_logodds"
        raise TaskError(
            f"contrast={self.alpha:g} compares log-likelihoods of answers, and task {task!r} {does}: "
            f"use {instead}"
        )


def with_contrast(gate: Mapping[str, Any], contrast: Mapping[str, Any] | None) -> dict[str, Any]:
    """A gate's entry in a results file, with the contrast under `contrast` where there is one."""
    return {**gate, "contrast": dict(contrast)} if contrast else dict(gate)
