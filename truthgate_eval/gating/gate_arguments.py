"""The model arguments of a gate: their names, which action takes which, and how they are read.

lm-eval and lmms-eval pass them in different types: a number as a number or as text, a missing value as None
or "None" (`docs/harnesses.md#model-arguments`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from truthgate_eval.errors import GateError, check_choice
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.gating.selection import HeadSelection
from truthgate_eval.gating.shift import HeadShift

Action = Literal["soft", "select", "shift"]
ACTIONS: tuple[Action, ...] = get_args(Action)
Modality = Literal["text", "image"]
# The model arguments that only some actions take.
_SETTINGS: dict[Action, tuple[str, ...]] = {
    "soft": ("lam", "norm"),
    "select": ("top", "bottom", "in", "out", "per"),
    "shift": ("top", "alpha", "direction"),
}
# A class whose arguments have names takes these in a mapping: `in` is no name in Python.
ACTION_ARGUMENTS = (
    "action", "positions", "top", "bottom", "in", "out", "per", "alpha", "direction", "yes_offset",
)  # fmt: skip
GATE_ARGUMENTS = ("scores", "lam", "norm", "site", "layers", "mode", *ACTION_ARGUMENTS)


def is_missing(value: object) -> bool:
    """Whether a harness passes this for an argument that was not given."""
    return value is None or (isinstance(value, str) and value in ("None", ""))


def recommended_settings(artifact: TruthScores | None, modality: Modality) -> dict[str, Any]:
    """What an artifact recommends for a modality, without values that are missing."""
    recommended = artifact.metadata.get("recommended", {}) if artifact else {}
    if recommended.get("modality", "text") != modality:
        return {}
    return {name: value for name, value in recommended.items() if value is not None}


def choose_action(recommended: Mapping[str, Any], chosen: Mapping[str, Any]) -> tuple[Action, dict[str, Any]]:
    """The action, and its settings: those that are recommended for it, and the user's.

    Raises:
        GateError: There is no such action, or it does not take a setting of the user's.
    """
    recommended_action = recommended.get("action", "soft")
    action = check_choice("action", chosen.get("action", recommended_action), ACTIONS, GateError)
    own = _SETTINGS[action]
    others = [name for names in _SETTINGS.values() for name in names if name not in own and name in chosen]
    if others:
        raise GateError(f"action={action} takes no {others[0]}: it takes {', '.join(own)}")
    return action, {**(recommended if recommended_action == action else {}), **chosen}


def parse_selection(settings: Mapping[str, Any]) -> HeadSelection:
    """The selection of `action=select`.

    Raises:
        GateError: A value is not one that exists.
    """
    default = HeadSelection()
    return HeadSelection(
        top=_parse_count("top", settings.get("top", default.top)),
        bottom=_parse_count("bottom", settings.get("bottom", default.bottom)),
        factor_in=parse_number("in", settings.get("in", default.factor_in)),
        factor_out=parse_number("out", settings.get("out", default.factor_out)),
        per=settings.get("per", default.per),
    )


def parse_shift(settings: Mapping[str, Any]) -> HeadShift:
    """The shift of `action=shift`.

    Raises:
        GateError: A value is missing, or is not one that exists.
    """
    for name, example in (("top", "top=48"), ("alpha", "alpha=15")):
        if name not in settings:
            raise GateError(f"action=shift needs {name}: ITI has {example} in a model of 7B parameters")
    return HeadShift(
        top=_parse_count("top", settings["top"]),
        alpha=parse_number("alpha", settings["alpha"]),
        direction=settings.get("direction", "probe"),
    )


def _parse_count(name: str, value: object) -> int:
    if not re.fullmatch(r"[0-9]+", str(value)):
        raise GateError(f"{name}={value} is not a number of heads")
    return int(str(value))


def parse_number(name: str, value: Any) -> float:
    """A finite number.

    Args:
        name: The argument's name, for the message.
        value: A number, or text.

    Raises:
        GateError: It is none.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise GateError(f"{name}={value} is not a number") from None
    if not math.isfinite(number):
        raise GateError(f"{name}={value} is not a finite number")
    return number
