"""The gates of a study up to their strength: scores of every kind, each action, and their controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from truthgate_eval.gating.attention_layout import Site
from truthgate_eval.gating.gates_by_strength import (
    GateOfStrength,
    selected_gates,
    shifted_gates,
    soft_gates,
)
from truthgate_eval.gating.normalization import Norm
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.gating.selection import HeadSelection
from truthgate_eval.gating.shift import HeadShift
from truthgate_eval.gating.shuffle import shuffle_within_layers

StudyAction = Literal["soft", "select", "shift"]
STUDY_ACTIONS: tuple[StudyAction, ...] = get_args(StudyAction)
# Directions of g - 1 whose zero means something keep it; a probe's scores are centered in each layer.
_NORMS: dict[str, Norm] = {"gradient": "none", "learned": "none", "direct-effect": "none"}


@dataclass(frozen=True, eq=False)
class Direction:
    """A gate up to its strength.

    Attributes:
        source: The scores' name, or the control's.
        action: What is done to the heads.
        gate: The gate of a strength; strength 0 is no gate.
        control_of: For a shuffled control, the scores that were shuffled.
        is_random: Whether it is a random gate, a control of every row.
        strength: A strength that is given and not found: 1 for a learned gate as it was fitted.
    """

    source: str
    action: StudyAction
    gate: GateOfStrength
    control_of: str | None = None
    is_random: bool = False
    strength: float | None = None

    @property
    def is_control(self) -> bool:
        """Whether it is a shuffled or a random gate."""
        return self.is_random or self.control_of is not None

    @property
    def is_empty(self) -> bool:
        """Whether no strength changes anything: a learned gate that never left 1."""
        gate = self.gate(1.0)
        return bool((gate.values == 1).all()) and (gate.shift is None or not gate.shift.any())


@dataclass(frozen=True)
class StudyGates:
    """Which gates a study makes of each source of scores.

    Attributes:
        actions: What is done to the heads. Only a probe's scores at site `pre` have directions for `shift`.
        select: How many heads `select` amplifies, and how many it weakens; how many `shift` shifts.
        shuffles: Shuffled controls of each source and action.
        randoms: Random gates of each action but `shift`.
        site: Where the gates act.
    """

    actions: tuple[StudyAction, ...] = ("soft", "select")
    select: int = 20
    shuffles: int = 2
    randoms: int = 2
    site: Site = "post"


def make_directions(
    sources: Mapping[str, TruthScores], shape: tuple[int, int], config: StudyGates
) -> list[Direction]:
    """Every gate of a study up to its strength, controls after the scores that they belong to.

    Args:
        sources: Scores by name.
        shape: (layers, heads) of the model.
        config: Which gates.

    Raises:
        ScoresError: Scores do not fit the model.
        GateError: The model has fewer heads than `select` takes.
    """
    directions: list[Direction] = []
    for name, scores in sources.items():
        scores.check_fits(shape, "the model")
        shuffled = [shuffle_within_layers(scores, seed) for seed in range(config.shuffles)]
        for action in config.actions:
            if action == "shift" and not _has_directions(scores, config.site):
                continue
            directions.append(Direction(name, action, _gates(scores, shape, action, config)))
            directions += [
                Direction(
                    f"{name}, shuffled {seed}", action, _gates(own, shape, action, config), control_of=name
                )
                for seed, own in enumerate(shuffled)
            ]
        if scores.metadata.get("kind") == "learned" and "soft" in config.actions:
            fitted = _gates(scores, shape, "soft", config)
            directions.append(Direction(f"{name}, as fitted", "soft", fitted, strength=1.0))
    for seed in range(config.randoms):
        directions += [
            Direction(f"random {seed}", action, _gates(seed, shape, action, config), is_random=True)
            for action in config.actions
            if action != "shift"
        ]
    return directions


def _has_directions(scores: TruthScores, site: Site) -> bool:
    return site == "pre" and scores.metadata.get("site") == "pre" and scores.activation_std is not None


def _gates(
    source: TruthScores | int, shape: tuple[int, int], action: StudyAction, config: StudyGates
) -> GateOfStrength:
    where: dict[str, Any] = {"site": config.site, "layers": None}
    if action == "shift":
        return shifted_gates(source, HeadShift(config.select, alpha=1.0), layers=None)
    if action == "select":
        return selected_gates(source, HeadSelection(config.select, config.select), shape, **where)
    kind = "" if isinstance(source, int) else str(source.metadata.get("kind"))
    return soft_gates(source, shape, norm=_NORMS.get(kind, "centered"), **where)
