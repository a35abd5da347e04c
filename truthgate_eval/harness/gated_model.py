"""What the gated models of both harnesses have in common: their gate, and a strength found on their requests.

A strength that is given as a divergence (`lam=kl:0.05`) is found when a run hands over its first requests.
Until then the model is the vanilla one. No labels are read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from truthgate_eval.errors import GateError, ModelError
from truthgate_eval.gating.equal_strength import find_equal_strength
from truthgate_eval.gating.gate import GateHandle
from truthgate_eval.gating.gate_arguments import is_missing
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.yes_offset import add_yes_offset
from truthgate_eval.inference.next_token_divergence import Divergence


def check_not_given(arguments: Mapping[str, object], names: Iterable[str], reason: str) -> None:
    """Refuse model arguments that would change nothing, or not be recorded.

    Args:
        arguments: As in the harness. `scores=none` and what is missing are taken.
        names: The arguments to refuse, such as `GATE_ARGUMENTS`.
        reason: Why, for the message.

    Raises:
        ModelError: One of them is given.

    Example:
        >>> check_not_given({"scores": "none", "lam": None}, ("scores", "lam"), "the model has no gate")
    """
    for name in names:
        value = arguments.get(name)
        if not is_missing(value) and not (name == "scores" and str(value) == "none"):
            raise ModelError(f"{reason}: leave {name} out of --model_args")


class StoppedAtRequests(Exception):
    """Ends a run that is only made for its first requests.

    Attributes:
        requests: The requests.
    """

    def __init__(self, requests: Sequence[Any]) -> None:
        super().__init__()
        self.requests = requests


class GatedModel(ABC):
    """A harness's model with a gate on its attention heads.

    Attributes:
        gate_settings: The gate's configuration; its strength is 0 until it has been found.
        gate_handle: The live gate, or None where it is folded, where there is none, and until it is found.
        stops_at_requests: Whether the next requests are not answered but raised as `StoppedAtRequests`.
    """

    gate_settings: GateConfig
    gate_handle: GateHandle | None = None
    stops_at_requests: bool = False

    @abstractmethod
    def gated_parts(self) -> tuple[Any, Any, str]:
        """The transformers model, its tokenizer, and its name."""

    @abstractmethod
    def divergence(self, requests: Sequence[Any], count: int) -> Divergence:
        """How far the model moves from what it is now, on prompts of some requests.

        Args:
            requests: The harness's requests.
            count: The most prompts, drawn by their content.
        """

    def apply_gate(self, *, processes: int) -> None:
        """Gate the loaded model as `gate_settings` says, or only check that where the strength is pending.

        Args:
            processes: How many processes run the model.

        Raises:
            GateError: The gate does not fit the model, or several processes would look for a strength.
            ScoresError: The scores do not fit the model.
        """
        settings = self.gate_settings
        if settings.is_pending and settings.target is not None and processes > 1:
            raise GateError(
                f"{settings.target.text} is found by one process, and {processes} are running: find it in "
                "one, then give the number that its results file has"
            )
        model, tokenizer, name = self.gated_parts()
        self.gate_handle = settings.apply(model, name)
        add_yes_offset(model, tokenizer, settings.yes_offset)

    def see_requests(self, requests: Sequence[Any]) -> None:
        """Find a pending strength on these requests' prompts, and gate the model: call it before answering.

        Args:
            requests: All requests of one kind that a run has.

        Raises:
            GateError: No strength has the divergence that was asked for.
            StoppedAtRequests: `stops_at_requests` is set.
        """
        if self.stops_at_requests:
            raise StoppedAtRequests(requests)
        settings = self.gate_settings
        if not requests or not settings.is_pending or settings.target is None:
            return
        model, tokenizer, name = self.gated_parts()
        divergence = self.divergence(requests, settings.target.prompts)
        self.gate_settings = find_equal_strength(settings, model, name, divergence, tokenizer=tokenizer)
        self.apply_gate(processes=1)

    def check_strength_is_known(self, reason: str) -> None:
        """Refuse a pending strength.

        Args:
            reason: Why it must be known before.

        Raises:
            GateError: It is pending.
        """
        settings = self.gate_settings
        if settings.is_pending and settings.target is not None:
            raise GateError(
                f"{settings.target.text} is found on a run's requests, and {reason}: give the number that "
                "another run has found"
            )
