"""What the gated models of both harnesses have in common: their gate, and a strength found on their requests.

A strength that is given as a divergence (`lam=kl:0.05`) is found when a run hands over its first requests.
Until then the model is the vanilla one. No labels are read.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from truthgate_eval.errors import GateError, ModelError
from truthgate_eval.gating.equal_strength import find_equal_strength
from truthgate_eval.gating.gate import GateHandle
from truthgate_eval.gating.gate_arguments import is_missing
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.yes_offset import add_yes_offset
from truthgate_eval.inference.next_token_divergence import Divergence
from truthgate_eval.processes import ONE_PROCESS, Processes, join

log = logging.getLogger(__name__)


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
    # The configuration before a run found its strength; None where nothing was found.
    _before_run: GateConfig | None = None
    _take_back_offset: Callable[[], None] | None = None

    @abstractmethod
    def gated_parts(self) -> tuple[Any, Any, str]:
        """The transformers model, its tokenizer, and its name."""

    @abstractmethod
    def divergence(self, requests: Sequence[Any], count: int) -> Divergence:
        """How far the model moves from what it is now, on prompts of some requests.

        Several processes share the prompts: all of them must call it, and what it returns.

        Args:
            requests: The harness's requests, this process's part of them.
            count: The most prompts, drawn by their content from those of all processes.
        """

    @property
    def processes(self) -> Processes:
        """The processes that run the model, each on a part of a run's requests."""
        return join() if getattr(self, "world_size", 1) > 1 else ONE_PROCESS

    def apply_gate(self) -> None:
        """Gate the loaded model as `gate_settings` says, or only check that where the strength is pending.

        Raises:
            GateError: The gate does not fit the model.
            ScoresError: The scores do not fit the model.
        """
        settings = self.gate_settings
        model, tokenizer, name = self.gated_parts()
        self.gate_handle = settings.apply(model, name)
        self._take_back_offset = add_yes_offset(model, tokenizer, settings.yes_offset)

    def start_run(self) -> None:
        """Forget a strength that another run found on its requests: call it before a run's first request.

        A folded gate is in the weights and cannot be taken back: its strength stays, and a warning says so.
        """
        before = self._before_run
        if before is None:
            return
        if before.mode == "folded" and not before.is_vanilla:
            log.warning(
                "the gate of an earlier run is folded into the weights, with the strength that was found "
                "there: %s",
                self.gate_settings.describe(),
            )
            return
        if self.gate_handle is not None:
            self.gate_handle.remove()
        if self._take_back_offset is not None:
            self._take_back_offset()
        self.gate_settings, self.gate_handle, self._before_run = before, None, None

    def see_requests(self, requests: Sequence[Any]) -> None:
        """Find a pending strength on these requests' prompts, and gate the model: call it before answering.

        Several processes find one strength on the prompts of all, whichever has which.

        Args:
            requests: All requests of one kind that a run has, in this process.

        Raises:
            GateError: No strength has the divergence that was asked for.
            StoppedAtRequests: `stops_at_requests` is set.
        """
        if self.stops_at_requests:
            raise StoppedAtRequests(requests)
        settings = self.gate_settings
        if not settings.is_pending or settings.target is None:
            return
        if not requests and self.processes.count == 1:
            return
        model, tokenizer, name = self.gated_parts()
        divergence = self.divergence(requests, settings.target.prompts)
        self.gate_settings = find_equal_strength(settings, model, name, divergence, tokenizer=tokenizer)
        self._before_run = settings
        self.apply_gate()

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
