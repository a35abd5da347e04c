"""A gate as a user writes it, `scores=vicuna.npz,lam=0.3,norm=minmax`, checked and applied to a model.

The model arguments of lm-eval and lmms-eval arrive in different types: a number as a number or as text, a
missing value as None or "None" (`docs/harnesses.md#model-arguments`). `GateConfig.parse` takes all of them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from truthgate_eval import __version__
from truthgate_eval.errors import GateError, check_choice
from truthgate_eval.gating.attention_layout import AttentionLayout, Site, check_site, find_attention_layout
from truthgate_eval.gating.gate import Gate, GateHandle, attach, fold, warn_of_extreme
from truthgate_eval.gating.gate_arguments import MODES, Action, Modality, Mode, parse_layers, read_arguments
from truthgate_eval.gating.gate_source import load_source, source_name
from truthgate_eval.gating.gates_by_strength import selected_gates, shifted_gates, soft_gates
from truthgate_eval.gating.hub_scores import recorded_origin
from truthgate_eval.gating.layer_gate import check_foldable
from truthgate_eval.gating.normalization import Norm, check_norm
from truthgate_eval.gating.positions import Positions, check_positions
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.gating.selection import HeadSelection
from truthgate_eval.gating.shift import HeadShift
from truthgate_eval.gating.strength import StrengthTarget

log = logging.getLogger(__name__)

# `kind` in results files: a gate of truth scores or of shuffled ones, a random gate, or no gate.
GateKind = Literal["scores", "shuffled", "random", "vanilla"]


@dataclass(frozen=True)
class GateConfig:
    """The configuration of one gate; `parse` makes one from a harness's model arguments.

    Attributes:
        source: The `scores=` argument as given, for results files.
        scores: The truth scores; None for a random gate and the vanilla model.
        seed: Seed of a random gate; None for every other gate.
        lam: Strength of a gate that multiplies heads: of a soft one, and of `select` (`gates_by_strength`).
        norm: Normalization of a soft gate's scores within each layer.
        site: Where the gate acts.
        layers: The layers to gate (0-based), or None for all.
        mode: `live` gates with hooks, `folded` puts the gate into the weights.
        selection: Selects heads instead of a soft gate.
        shift: Shifts heads instead of a soft gate.
        positions: The tokens that are gated.
        yes_offset: Added to the logits of yes, also without a gate; see `yes_offset.add_yes_offset`.
        target: A strength that was given as a divergence; it is 0 until it is found (`is_pending`).

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
    lam: float = 1.0
    norm: Norm = "centered"
    site: Site = "post"
    layers: tuple[int, ...] | None = None
    mode: Mode = "live"
    selection: HeadSelection | None = None
    shift: HeadShift | None = None
    positions: Positions = "all"
    yes_offset: float = 0.0
    target: StrengthTarget | None = None

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
        if self.target is not None:
            self._check_target(self.target)

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

    def _check_target(self, target: StrengthTarget) -> None:
        is_offset = target.argument == "yes_offset"
        if is_offset and not self.is_vanilla:
            raise GateError(f"{target.text} is the strength of an offset alone: use it with scores=none")
        if not is_offset and self.is_vanilla:
            raise GateError(f"scores={self.source} has no gate whose strength {target.text} could be found")
        if not is_offset and self.yes_offset:
            raise GateError(
                f"{target.text} and yes_offset={self.yes_offset:g} both change the model: leave one out"
            )
        if self.positions == "generated":
            raise GateError(
                f"{target.text}: positions=generated changes nothing at a prompt's last token, where the "
                "divergence is measured; use positions=all or last, or give a number"
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
                * lam: Strength of a soft gate; for a random gate and `select` a factor of g - 1 (default 1).
                  `kl:0.05`, as for alpha and yes_offset: the one at which the model's mean divergence from
                  the vanilla one is 0.05 nats (`equal_strength`).
                * kl_prompts: On how many prompts it is found.
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
        artifact, seed = load_source(scores)
        source = source_name(scores)
        has_gate = artifact is not None or seed is not None
        fields = read_arguments(arguments, artifact, source=source, has_gate=has_gate, modality=modality)
        return cls(source, artifact, seed, **fields)

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

    @property
    def is_pending(self) -> bool:
        """Whether the strength is still to be found: the model is the vanilla one until then."""
        return self.target is not None and self.target.reached is None

    def with_strength(self, strength: float, reached: float, stderr: float, prompts: int) -> GateConfig:
        """The configuration with the strength that was found for its target.

        Args:
            strength: The value of lam, alpha or yes_offset.
            reached: The mean divergence there, in nats.
            stderr: Its standard error over the prompts.
            prompts: On how many prompts.
        """
        assert self.target is not None
        known = replace(self.target, reached=reached, stderr=stderr, prompts=prompts)
        found = replace(self, target=known)
        if self.target.argument == "yes_offset":
            return replace(found, yes_offset=strength)
        if self.shift is not None:
            return replace(found, shift=replace(self.shift, alpha=strength))
        return replace(found, lam=strength)

    def gate(self, layout: AttentionLayout, model: str) -> Gate:
        """The gate for a model.

        Args:
            layout: The model's attention heads.
            model: The model's name, for messages.

        Raises:
            GateError: There is no gate, its strength is still to be found, or the model has no such layers.
            ScoresError: The scores do not fit the model.
        """
        if self.is_pending and self.target is not None:
            raise GateError(f"{self.target.text} is found in a run of lm_eval or lmms_eval: give the number")
        strength = self.lam if self.shift is None else self.shift.alpha
        return warn_of_extreme(self.gates(layout, model)(strength))

    def gates(self, layout: AttentionLayout, model: str) -> Callable[[float], Gate]:
        """The gate of every strength, lam or alpha, for a model; 0 changes nothing. Raises as `gate` does."""
        if self.is_vanilla:
            raise GateError("scores=none has no gate")
        if self.scores is not None:
            self.scores.check_fits(layout.shape, model)
        source = self.scores if self.seed is None else self.seed
        assert source is not None
        where: dict[str, Any] = {"site": self.site, "layers": self.layers}
        if self.selection is not None:
            at = selected_gates(source, self.selection, layout.shape, **where)
        elif self.shift is not None:
            at = shifted_gates(source, self.shift, layers=self.layers)
        else:
            at = soft_gates(source, layout.shape, norm=self.norm, **where)
        return lambda strength: replace(at(strength), positions=self.positions)

    def apply(self, model: Any, name: str) -> GateHandle | None:
        """Gate a loaded model; one whose strength is to be found is only checked.

        Args:
            model: A transformers model.
            name: The model's name, for messages.

        Returns:
            The handle of the live gate; None for a folded gate, a pending one, and the vanilla model.

        Raises:
            GateError: There is no gate, the model has no such layers, or its weights cannot be folded into.
            ScoresError: The scores do not fit the model.
        """
        if self.is_vanilla:
            return None
        layout = find_attention_layout(model)
        if self.is_pending:
            self.gates(layout, name)(0.0)
            if self.mode == "folded":
                for projection in layout.projections:
                    check_foldable(projection.name, projection.module)
            return None
        probed = self.scores.metadata.get("site") if self.scores is not None else None
        if probed and probed != self.site:
            log.warning("the scores were probed at site=%s and gate site=%s", probed, self.site)
        gate = self.gate(layout, name)
        log.info("gated %d layers x %d heads of %s: %s", *layout.shape, name, self.describe())
        if self.mode == "folded":
            fold(model, gate, layout=layout)
            return None
        return attach(model, gate, layout=layout)

    def describe(self) -> dict[str, Any]:
        """The gate's provenance for a results file, under `gate` (`docs/harnesses.md#results-files`)."""
        described: dict[str, Any] = {"kind": self.kind, "scores": self.source, "truthgate_eval": __version__}
        if self.yes_offset:
            described["yes_offset"] = self.yes_offset
        if self.target is not None:
            described["strength"] = self.target.describe()
        if self.is_vanilla:
            return described
        described |= {"site": self.site, "mode": self.mode, "layers": self.layers and list(self.layers)}
        described |= {"action": self.action, "positions": self.positions}
        settings = self.selection or self.shift
        if settings is not None:
            described |= settings.describe()
        is_soft = settings is None and self.scores is not None
        if is_soft or (self.shift is None and self.lam != 1):
            described["lam"] = self.lam
        if is_soft:
            described["norm"] = self.norm
        if self.scores is not None:
            described |= {"sha256": self.scores.fingerprint, **recorded_origin(self.scores.metadata)}
            names = ("model", "architecture", "task", "site")
            described |= {"probed": {name: self.scores.metadata.get(name) for name in names}}
        return described
