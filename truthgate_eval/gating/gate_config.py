"""A gate as a user writes it, `scores=vicuna.npz,lam=0.3,norm=minmax`, checked and applied to a model.

The model arguments of lm-eval and lmms-eval arrive in different types: a number as a number or as text, a
missing value as None or "None" (`docs/harnesses.md#model-arguments`). `GateConfig.parse` takes all of them.
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from truthgate_eval import __version__
from truthgate_eval.errors import GateError, check_choice
from truthgate_eval.gating.attention_layout import AttentionLayout, Site, check_site, find_attention_layout
from truthgate_eval.gating.gate import (
    Gate,
    GateHandle,
    Norm,
    attach,
    check_norm,
    fold,
    make_gate,
    random_gate,
)
from truthgate_eval.gating.gate_arguments import (
    GATE_ARGUMENTS,
    Action,
    Modality,
    choose_action,
    is_missing,
    parse_number,
    parse_selection,
    parse_shift,
    recommended_settings,
)
from truthgate_eval.gating.positions import Positions, check_positions
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.gating.selection import HeadSelection, random_selection_gate, select_gate
from truthgate_eval.gating.shift import HeadShift, shift_gate
from truthgate_eval.gating.shuffle import parse_shuffled, shuffle_within_layers
from truthgate_eval.gating.yes_offset import parse_yes_offset

log = logging.getLogger(__name__)

Mode = Literal["live", "folded"]
MODES: tuple[Mode, ...] = get_args(Mode)
# `kind` in results files: a gate of truth scores or of shuffled ones, a random gate, or no gate.
GateKind = Literal["scores", "shuffled", "random", "vanilla"]

# The paper's norms for language models and for multimodal ones (`docs/method.md#soft-gate`).
_PAPER_NORM: dict[Modality, Norm] = {"text": "centered", "image": "minmax"}


@dataclass(frozen=True)
class GateConfig:
    """The configuration of one gate; `parse` makes one from a harness's model arguments.

    Attributes:
        source: The `scores=` argument as given, for results files.
        scores: The truth scores; None for a random gate and the vanilla model.
        seed: Seed of a random gate; None for every other gate.
        lam: Strength of a soft gate.
        norm: Normalization of a soft gate's scores within each layer.
        site: Where the gate acts.
        layers: The layers to gate (0-based), or None for all.
        mode: `live` gates with hooks, `folded` puts the gate into the weights.
        selection: Selects heads instead of a soft gate.
        shift: Shifts heads instead of a soft gate.
        positions: The tokens that are gated.
        yes_offset: Added to the logits of yes, also without a gate; see `yes_offset.add_yes_offset`.

    Raises:
        GateError: A value is not one that exists, or two exclude each other.

    Example:
        >>> GateConfig.parse("random:7", site="pre").kind
        'random'
        >>> GateConfig.parse("random:7", action="select", top=5, bottom=0).action
        'select'
        >>> GateConfig.parse("none").kind
        'vanilla'
    """

    source: str
    scores: TruthScores | None = None
    seed: int | None = None
    lam: float = 0.0
    norm: Norm = "centered"
    site: Site = "post"
    layers: tuple[int, ...] | None = None
    mode: Mode = "live"
    selection: HeadSelection | None = None
    shift: HeadShift | None = None
    positions: Positions = "all"
    yes_offset: float = 0.0

    def __post_init__(self) -> None:
        if self.scores is not None and self.seed is not None:
            raise GateError("a gate has either truth scores or the seed of a random gate, not both")
        if not math.isfinite(self.lam):
            raise GateError(f"lam={self.lam} is not a finite number")
        check_norm(self.norm)
        check_site(self.site)
        check_choice("mode", self.mode, MODES, GateError)
        check_positions(self.positions)
        if self.layers is not None:
            parse_layers(self.layers)
        self._check_action()

    def _check_action(self) -> None:
        if self.selection is not None and self.shift is not None:
            raise GateError("a gate selects heads or shifts them, not both")
        if self.mode == "folded" and self.positions != "all":
            raise GateError(f"positions={self.positions} cannot be folded into weights: use mode=live")
        if self.shift is not None and self.site != "pre":
            raise GateError(
                f"action=shift acts at the input of the output projection, site=pre; got site={self.site}"
            )
        if self.shift is not None and self.seed is not None:
            raise GateError(
                f"scores={self.source} have no directions to shift heads along: use "
                "scores=shuffled:FILE:SEED, which shifts random heads along their own directions"
            )

    @classmethod
    def parse(cls, scores: object, *, modality: Modality = "text", **arguments: object) -> GateConfig:
        """Check a harness's arguments and load the scores that they name.

        Args:
            scores: A file, a shipped artifact's name, `hf://...`, `shuffled:FILE:SEED`, `random:SEED`,
                `none`, or `TruthScores`.
            modality: `text` or `image`, the input that the gated model is evaluated on. A recommendation that
                was selected on the other modality is not used.
            **arguments: Any of `GATE_ARGUMENTS`; None, "None" and "" are missing. What is missing is what the
                artifact recommends, if it recommends the same action.

                * action: `soft` (default), `select` or `shift`.
                * lam: Strength of a soft gate.
                * norm: One of `NORMS`; else the paper's choice for the modality.
                * top, bottom: Numbers of heads that are selected (default 20 and 20) or shifted.
                * in, out: Factors of the top and the bottom heads (default 2 and 0).
                * per: `all` selects of all heads (default), `layer` in each layer.
                * alpha: Strength of a shift, in standard deviations.
                * direction: `probe` (default) or `means`.
                * site: `post` (default) or `pre`; a shift is always at `pre`.
                * layers: `8-15`, `3+8-15`, a number or a list; else all.
                * positions: `all` (default), `last` or `generated`.
                * mode: `live` (default) or `folded`.
                * yes_offset: A number that is added to the logits of yes; default 0.

        Raises:
            GateError: An argument is not one that exists, or the action does not take it.
            ScoresError: The scores cannot be read.
        """
        chosen = {name: value for name, value in arguments.items() if not is_missing(value)}
        unknown = next((name for name in chosen if name not in GATE_ARGUMENTS), None)
        if unknown is not None:
            raise GateError(f"unknown argument {unknown!r} of a gate: expected {', '.join(GATE_ARGUMENTS)}")
        source = "in-memory scores" if isinstance(scores, TruthScores) else str(scores)
        artifact, seed = _load_source(scores)
        action, settings = choose_action(recommended_settings(artifact, modality), chosen)
        if artifact is None and seed is None:  # no heads are selected or shifted, and no tokens gated
            action, settings = "soft", {**settings, "positions": None}
        if action == "soft" and artifact is not None and "lam" not in settings:
            raise GateError(
                f"scores={source} recommend no lam: add lam=NUMBER (the paper's values go from 0.1 to 7.5)"
            )
        if "lam" in chosen and seed is not None:
            log.warning("lam=%s has no effect on a random gate, which is drawn from [-1, 1]", chosen["lam"])
        return cls(
            source,
            artifact,
            seed,
            lam=parse_number("lam", settings.get("lam", 0.0)),
            norm=check_norm(settings.get("norm") or _PAPER_NORM[modality]),
            site=check_site(settings.get("site") or ("pre" if action == "shift" else "post")),
            layers=parse_layers(settings.get("layers")),
            mode=check_choice("mode", settings.get("mode", "live"), MODES, GateError),
            selection=parse_selection(settings) if action == "select" else None,
            shift=parse_shift(settings) if action == "shift" else None,
            positions=check_positions(settings.get("positions") or "all"),
            yes_offset=parse_yes_offset(settings.get("yes_offset", 0.0)),
        )

    @property
    def action(self) -> Action:
        """What is done to the heads."""
        if self.selection is not None:
            return "select"
        return "soft" if self.shift is None else "shift"

    @property
    def kind(self) -> GateKind:
        """Whether the gate is one of truth scores, of shuffled ones, a random one, or none (`vanilla`)."""
        if self.seed is not None:
            return "random"
        if self.scores is None:
            return "vanilla"
        return "shuffled" if "shuffled_seed" in self.scores.metadata else "scores"

    @property
    def is_vanilla(self) -> bool:
        """Whether nothing is gated: `scores=none`."""
        return self.kind == "vanilla"

    def gate(self, layout: AttentionLayout, model: str) -> Gate:
        """The gate for a model.

        Args:
            layout: The model's attention heads.
            model: The model's name, for messages.

        Raises:
            GateError: There is no gate, or the model has no such layers.
            ScoresError: The scores do not fit the model.
        """
        return replace(self._gate_all_positions(layout, model), positions=self.positions)

    def _gate_all_positions(self, layout: AttentionLayout, model: str) -> Gate:
        where: dict[str, Any] = {"site": self.site, "layers": self.layers}
        if self.seed is not None:
            if self.selection is not None:
                return random_selection_gate(layout.shape, self.selection, seed=self.seed, **where)
            return random_gate(layout.shape, seed=self.seed, **where)
        if self.scores is None:
            raise GateError("scores=none has no gate")
        self.scores.check_fits(layout.shape, model)
        probed = self.scores.metadata.get("site")
        if probed and probed != self.site:
            log.warning("the scores were probed at site=%s and gate site=%s", probed, self.site)
        if self.selection is not None:
            return select_gate(self.scores, self.selection, **where)
        if self.shift is not None:
            return shift_gate(self.scores, self.shift, layers=self.layers)
        return make_gate(self.scores, lam=self.lam, norm=self.norm, **where)

    def apply(self, model: Any, name: str) -> GateHandle | None:
        """Gate a loaded model.

        Args:
            model: A transformers model.
            name: The model's name, for messages.

        Returns:
            The handle of the live gate; None for a folded gate and for the vanilla model.
        """
        if self.is_vanilla:
            return None
        layout = find_attention_layout(model)
        gate = self.gate(layout, name)
        log.info("gated %d layers x %d heads of %s: %s", *layout.shape, name, self.describe())
        if self.mode == "folded":
            fold(model, gate, layout=layout)
            return None
        return attach(model, gate, layout=layout)

    def describe(self) -> dict[str, Any]:
        """The gate's provenance for a results file, under `gate` (`docs/harnesses.md#results-files`)."""
        described: dict[str, Any] = {
            "kind": self.kind,
            "scores": self.source,
            "truthgate_eval": __version__,
        }
        if self.yes_offset:
            described["yes_offset"] = self.yes_offset
        if self.is_vanilla:
            return described
        described |= {"site": self.site, "mode": self.mode, "layers": self.layers and list(self.layers)}
        described |= {"action": self.action, "positions": self.positions}
        settings = self.selection or self.shift
        if settings is not None:
            described |= settings.describe()
        elif self.scores is not None:
            described |= {"lam": self.lam, "norm": self.norm}
        if self.scores is not None:
            described["sha256"] = self.scores.fingerprint
            names = ("model", "architecture", "task", "site")
            described |= {"probed": {name: self.scores.metadata.get(name) for name in names}}
        return described


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
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise GateError(f"layers={value} is not a list of layers: write 8-15, or 3+8-15")
        numbers |= set(range(first, last + 1))
    return tuple(sorted(numbers))


def _load_source(scores: object) -> tuple[TruthScores | None, int | None]:
    """(scores, None), (None, seed of a random gate), or (None, None) for the vanilla model."""
    if isinstance(scores, TruthScores):
        return scores, None
    shuffled = parse_shuffled(str(scores))
    if shuffled is not None:
        return shuffle_within_layers(TruthScores.resolve(shuffled[0]), shuffled[1]), None
    name = "none" if scores is None else str(scores)
    if name.lower() == "none":
        return None, None
    if name == "random" or name.startswith("random:"):
        seed = name.removeprefix("random").removeprefix(":")
        if not re.fullmatch(r"[0-9]+", seed):
            raise GateError(f"scores={name}: a random gate needs a seed, as in scores=random:1")
        return None, int(seed)
    if re.fullmatch(r"random[0-9]+", name) and not Path(name).exists():
        raise GateError(
            f"scores={name}: write the random gate as scores=random:{name.removeprefix('random')}"
        )
    return TruthScores.resolve(name), None
