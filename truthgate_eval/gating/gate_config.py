"""A gate as a user writes it, `scores=vicuna.npz,lam=0.3,norm=minmax`, checked and applied to a model.

The model arguments of lm-eval and lmms-eval arrive in different types: a number as a number or as text, a
missing value as None or "None" (`docs/harnesses.md#model-arguments`). `GateConfig.parse` takes all of them.
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
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
from truthgate_eval.gating.scores import TruthScores

log = logging.getLogger(__name__)

Mode = Literal["live", "folded"]
MODES: tuple[Mode, ...] = get_args(Mode)
Modality = Literal["text", "image"]
# `kind` in results files: a gate of truth scores, the ablation's random gate, or no gate.
GateKind = Literal["scores", "random", "vanilla"]
GATE_ARGUMENTS = ("scores", "lam", "norm", "site", "layers", "mode")

# The paper's norms for language models and for multimodal ones (`docs/method.md#soft-gate`).
_PAPER_NORM: dict[Modality, Norm] = {"text": "centered", "image": "minmax"}


@dataclass(frozen=True)
class GateConfig:
    """The configuration of one gate; `parse` makes one from a harness's model arguments.

    Attributes:
        source: The `scores=` argument as given, for results files.
        scores: The truth scores; None for the random gate and the vanilla model.
        seed: Seed of the random gate; None for every other gate.
        lam: Strength of the gate.
        norm: Normalization of the scores within each layer.
        site: Where the gate acts.
        layers: The layers to gate (0-based), or None for all.
        mode: `live` gates with hooks, `folded` multiplies the gate into the weights.

    Raises:
        GateError: A value is not one that exists.

    Example:
        >>> GateConfig.parse("random:7", site="pre").kind
        'random'
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

    def __post_init__(self) -> None:
        if self.scores is not None and self.seed is not None:
            raise GateError("a gate has either truth scores or the seed of a random gate, not both")
        if not math.isfinite(self.lam):
            raise GateError(f"lam={self.lam} is not a finite number")
        check_norm(self.norm)
        check_site(self.site)
        check_choice("mode", self.mode, MODES, GateError)
        if self.layers is not None:
            parse_layers(self.layers)

    @classmethod
    def parse(
        cls,
        scores: object,
        *,
        lam: object = None,
        norm: object = None,
        site: object = None,
        layers: object = None,
        mode: object = None,
        modality: Modality = "text",
    ) -> GateConfig:
        """Check a harness's arguments and load the scores that they name.

        Args:
            scores: A file, a shipped artifact's name, `hf://...`, `random:SEED`, `none`, or `TruthScores`.
            lam: Strength; None takes what the artifact recommends.
            norm: One of `NORMS`; None takes what the artifact recommends, else the paper's choice.
            site: `post` or `pre`; None takes what the artifact recommends, else `post`.
            layers: `8-15`, `3+8-15`, a number or a list; None takes what the artifact recommends, else all.
            mode: `live` (default) or `folded`.
            modality: `text` or `image`, the input that the gated model is evaluated on. A recommendation that
                was selected on the other modality is not used.

        Raises:
            GateError: An argument is not one that exists.
            ScoresError: The scores cannot be read.
        """
        given = {"lam": lam, "norm": norm, "site": site, "layers": layers}
        chosen = {name: value for name, value in given.items() if not _is_missing(value)}
        source = "in-memory scores" if isinstance(scores, TruthScores) else str(scores)
        artifact, seed = _load_source(scores)
        settings = {**_recommended(artifact, modality), **chosen}
        if artifact is not None and "lam" not in settings:
            raise GateError(
                f"scores={source} recommend no lam: add lam=NUMBER (the paper's values go from 0.1 to 7.5)"
            )
        if "lam" in chosen and seed is not None:
            log.warning("lam=%s has no effect on a random gate, which is drawn from [-1, 1]", lam)
        return cls(
            source,
            artifact,
            seed,
            lam=_parse_number(settings.get("lam", 0.0)),
            norm=check_norm(settings.get("norm") or _PAPER_NORM[modality]),
            site=check_site(settings.get("site") or "post"),
            layers=parse_layers(settings.get("layers")),
            mode=check_choice("mode", "live" if _is_missing(mode) else mode, MODES, GateError),
        )

    @property
    def kind(self) -> GateKind:
        """Whether the gate is one of truth scores, a random one, or none (`vanilla`)."""
        if self.seed is not None:
            return "random"
        return "vanilla" if self.scores is None else "scores"

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
        if self.seed is not None:
            return random_gate(layout.shape, seed=self.seed, site=self.site, layers=self.layers)
        if self.scores is None:
            raise GateError("scores=none has no gate")
        self.scores.check_fits(layout.shape, model)
        probed = self.scores.metadata.get("site")
        if probed and probed != self.site:
            log.warning("the scores were probed at site=%s and gate site=%s", probed, self.site)
        return make_gate(self.scores, lam=self.lam, norm=self.norm, site=self.site, layers=self.layers)

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
        if self.is_vanilla:
            return described
        described |= {"site": self.site, "mode": self.mode, "layers": self.layers and list(self.layers)}
        if self.scores is not None:
            described |= {"lam": self.lam, "norm": self.norm, "sha256": self.scores.fingerprint}
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


def _is_missing(value: object) -> bool:
    """Whether a harness passes this for an argument that was not given."""
    return value is None or (isinstance(value, str) and value in ("None", ""))


def _recommended(artifact: TruthScores | None, modality: Modality) -> dict[str, Any]:
    """The recommended settings, without values that are missing."""
    recommended = artifact.metadata.get("recommended", {}) if artifact else {}
    if recommended.get("modality", "text") != modality:
        return {}
    return {name: value for name, value in recommended.items() if value is not None}


def _load_source(scores: object) -> tuple[TruthScores | None, int | None]:
    """(scores, None), (None, seed of the random gate), or (None, None) for the vanilla model."""
    if isinstance(scores, TruthScores):
        return scores, None
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


def _parse_number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise GateError(f"lam={value} is not a number") from None
    if not math.isfinite(number):
        raise GateError(f"lam={value} is not a finite number")
    return number
