"""The model arguments of a gate: their names, which action takes which, and how they are read.

lm-eval and lmms-eval pass them in different types: a number as a number or as text, a missing value as None
or "None" (`docs/harnesses.md#model-arguments`).
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from truthgate_eval.errors import GateError, check_choice
from truthgate_eval.gating.attention_layout import check_site
from truthgate_eval.gating.normalization import Norm, check_norm
from truthgate_eval.gating.positions import check_positions
from truthgate_eval.gating.score_files import MOST_HEADS
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.gating.selection import HeadSelection
from truthgate_eval.gating.shift import HeadShift
from truthgate_eval.gating.strength import StrengthArgument, StrengthTarget, parse_target

log = logging.getLogger(__name__)

Action = Literal["soft", "select", "shift"]
ACTIONS: tuple[Action, ...] = get_args(Action)
Modality = Literal["text", "image"]
Mode = Literal["live", "folded"]
MODES: tuple[Mode, ...] = get_args(Mode)
# The paper's norms for language models and for multimodal ones (`docs/method.md#soft-gate`).
_PAPER_NORM: dict[Modality, Norm] = {"text": "centered", "image": "minmax"}
# The model arguments that only some actions take.
_SETTINGS: dict[Action, tuple[str, ...]] = {
    "soft": ("lam", "norm"),
    "select": ("lam", "top", "bottom", "in", "out", "per"),
    "shift": ("top", "alpha", "direction"),
}
# A class whose arguments have names takes these in a mapping: `in` is no name in Python.
ACTION_ARGUMENTS = (
    "action", "positions", "top", "bottom", "in", "out", "per", "alpha", "direction", "yes_offset",
    "kl_prompts",
)  # fmt: skip
GATE_ARGUMENTS = ("scores", "lam", "norm", "site", "layers", "mode", *ACTION_ARGUMENTS)
_MOST_SHOWN = 100  # characters of a value in a message
_USUAL_ALPHA = 1000.0  # above it a shift is reported
_STRENGTHS: tuple[StrengthArgument, ...] = get_args(StrengthArgument)


def is_missing(value: object) -> bool:
    """Whether a harness passes this for an argument that was not given."""
    return value is None or (isinstance(value, str) and value in ("None", ""))


def recommended_settings(artifact: TruthScores | None, modality: Modality) -> dict[str, Any]:
    """What an artifact recommends for a modality, without values that are missing."""
    recommended = artifact.metadata.get("recommended", {}) if artifact else {}
    if recommended.get("modality", "text") not in (modality, "any"):
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


def read_arguments(
    arguments: Mapping[str, object],
    artifact: TruthScores | None,
    *,
    source: str,
    has_gate: bool,
    modality: Modality,
) -> dict[str, Any]:
    """A harness's arguments, and what the artifact recommends, as the fields of a `GateConfig`.

    Args:
        arguments: Any of `GATE_ARGUMENTS` but `scores`; see `GateConfig.parse`.
        artifact: The truth scores; None for a random gate and for the vanilla model.
        source: What `scores` says, for messages.
        has_gate: Whether there are scores or a random gate.
        modality: The input that the gated model is evaluated on.

    Raises:
        GateError: An argument is not one that exists, or the action does not take it.
    """
    chosen = {name: value for name, value in arguments.items() if not is_missing(value)}
    unknown = next((name for name in chosen if name not in GATE_ARGUMENTS), None)
    if unknown is not None:
        raise GateError(f"unknown argument {unknown!r} of a gate: expected {', '.join(GATE_ARGUMENTS)}")
    action, settings = choose_action(recommended_settings(artifact, modality), chosen)
    settings, target = take_target(settings)
    if not has_gate:  # no heads are selected or shifted, and no tokens gated
        action, settings = "soft", {**settings, "positions": None}
    if action == "soft" and artifact is not None and "lam" not in settings:
        raise GateError(
            f"scores={source} recommend no lam: add lam=NUMBER (the paper's values go from 0.1 to 7.5), or "
            "lam=kl:0.05"
        )
    return {
        "lam": parse_number("lam", settings.get("lam", 1.0 if has_gate else 0.0)),
        "norm": check_norm(settings.get("norm") or _PAPER_NORM[modality]),
        "site": check_site(settings.get("site") or ("pre" if action == "shift" else "post")),
        "layers": parse_layers(settings.get("layers")),
        "mode": check_choice("mode", settings.get("mode", "live"), MODES, GateError),
        "selection": parse_selection(settings) if action == "select" else None,
        "shift": parse_shift(settings) if action == "shift" else None,
        "positions": check_positions(settings.get("positions") or "all"),
        "yes_offset": parse_number("yes_offset", settings.get("yes_offset", 0.0)),
        "target": target,
    }


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
    alpha = parse_number("alpha", settings["alpha"])
    if abs(alpha) > _USUAL_ALPHA:
        log.warning("alpha=%g standard deviations, and ITI shifts heads by 15: check alpha", alpha)
    return HeadShift(
        top=_parse_count("top", settings["top"]),
        alpha=alpha,
        direction=settings.get("direction", "probe"),
    )


def take_target(settings: Mapping[str, Any]) -> tuple[dict[str, Any], StrengthTarget | None]:
    """The strength that is written `kl:TARGET`, and the settings with 0 in its place.

    Args:
        settings: Model arguments of a gate.

    Raises:
        GateError: Two strengths are written so, a target is no positive number, or a number of prompts is
            given without a target.

    Example:
        >>> take_target({"lam": "kl:0.05", "norm": "centered"})[0]
        {'lam': 0.0, 'norm': 'centered'}
    """
    prompts = settings.get("kl_prompts")
    given = {name: parse_target(settings.get(name)) for name in _STRENGTHS}
    found = [(name, target) for name, target in given.items() if target is not None]
    if len(found) > 1:
        (one, first), (other, second) = found[:2]
        raise GateError(
            f"{one}=kl:{first:g} and {other}=kl:{second:g}: only one strength can be found, give the other "
            "as a number"
        )
    if not found:
        if prompts is not None:
            raise GateError(
                f"kl_prompts={prompts} says on how many prompts a strength is found, and none is written "
                "kl:TARGET: leave it out"
            )
        return dict(settings), None
    [(name, target)] = found
    count = {} if prompts is None else {"prompts": _parse_count("kl_prompts", prompts, of="prompts")}
    return {**settings, name: 0.0}, StrengthTarget(name, target, **count)


def parse_layers(value: object) -> tuple[int, ...] | None:
    """Layer numbers out of `8-15`, `3+8-15`, 8, [8, 9] or None; sorted.

    Raises:
        GateError: It is not a list of layers.

    Example:
        >>> parse_layers("3+8-10")
        (3, 8, 9, 10)
    """
    if value is None:
        return None
    parts = [str(part) for part in value] if isinstance(value, list | tuple) else str(value).split("+")
    numbers: set[int] = set()
    for part in parts:
        match = re.fullmatch(r"\s*([0-9]{1,9})(?:-([0-9]{1,9}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise GateError(f"layers={_shown(value)} is not a list of layers: write 8-15, or 3+8-15")
        if last >= MOST_HEADS:
            raise GateError(f"layers={_shown(value)}: no model has a layer {last}")
        numbers |= set(range(first, last + 1))
    return tuple(sorted(numbers))


def _shown(value: object) -> str:
    """A value for a message; an artifact may recommend one of any length."""
    text = str(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _parse_count(name: str, value: object, of: str = "heads") -> int:
    if not re.fullmatch(r"[0-9]{1,9}", str(value)):
        raise GateError(f"{name}={_shown(value)} is not a number of {of}")
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
    except (TypeError, ValueError, OverflowError):
        raise GateError(f"{name}={_shown(value)} is not a number") from None
    if not math.isfinite(number):
        raise GateError(f"{name}={value} is not a finite number")
    return number
