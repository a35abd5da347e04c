"""A gate as a user writes it, `scores=vicuna.npz,lam=0.3,norm=minmax`, made ready for a model.

Both hosts' model arguments are read here, since both parse them a little differently
(HOSTS.md, "model_args"): numbers arrive as numbers or as text, a missing value as None or "None".
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from typing import Any

from truthgate_eval import __version__
from truthgate_eval.errors import GateError
from truthgate_eval.gating.attention_layout import AttentionLayout, check_site, find_attention_layout
from truthgate_eval.gating.gate import NORMS, Gate, GateHandle, attach, fold, make_gate, random_gate
from truthgate_eval.gating.scores import TruthScores

log = logging.getLogger(__name__)

MODES = ("live", "folded")
# The paper's norm for language models and for multimodal ones (METHOD.md, "Soft gate").
_PAPER_NORM = {"text": "centered", "image": "minmax"}
GATE_ARGUMENTS = ("scores", "lam", "norm", "site", "layers", "mode")


@dataclass(frozen=True)
class GateConfig:
    """What to gate a model with; `read` makes one from a host's model arguments.

    Attributes:
        source: The `scores=` argument as given, for the record.
        scores: The truth scores, or None for the random gate and the vanilla model.
        seed: Seed of the random gate, or None.
        lam: Strength of the gate.
        norm: Normalisation of the scores within each layer.
        site: Where the gate acts.
        layers: The layers to gate, or None for all.
        mode: `live` or `folded`.
    """

    source: str
    scores: TruthScores | None
    seed: int | None
    lam: float
    norm: str
    site: str
    layers: tuple[int, ...] | None
    mode: str

    @classmethod
    def parse(
        cls,
        scores: Any,
        *,
        lam: Any = None,
        norm: Any = None,
        site: Any = None,
        layers: Any = None,
        mode: Any = None,
        modality: str = "text",
    ) -> GateConfig:
        """Check a host's arguments and load the scores that they name.

        Args:
            scores: A file, a shipped artifact's name, `hf://...`, `random:SEED`, `none`, or `TruthScores`.
            lam: Strength; None takes what the artifact recommends.
            norm: One of `NORMS`; None takes what the artifact recommends, else the paper's choice.
            site: `post` or `pre`; None takes what the artifact recommends, else `post`.
            layers: `8-15`, `3+8-15`, a number or a list; None takes what the artifact recommends, else all.
            mode: `live` (default) or `folded`.
            modality: `text` or `image`: what the gated model is judged on. A recommendation that was
                selected in the other modality does not count.

        Raises:
            GateError: An argument is not one that exists.
            ScoresError: The scores cannot be read.
        """
        given = {"lam": lam, "norm": norm, "site": site, "layers": layers, "mode": mode}
        chosen = {name: None if value in (None, "None", "") else value for name, value in given.items()}
        source = "in-memory scores" if isinstance(scores, TruthScores) else str(scores)
        artifact, seed = _source(scores)
        recommended = _recommended(artifact, modality)
        if chosen["lam"] is None and artifact and "lam" not in recommended:
            raise GateError(
                f"scores={source} recommend no lam: add lam=NUMBER (the paper's values go from 0.1 to 7.5)"
            )
        if chosen["lam"] is not None and seed is not None:
            log.warning("lam=%s has no effect on a random gate, which is drawn from [-1, 1]", lam)
        norm = chosen["norm"] or recommended.get("norm") or _PAPER_NORM[modality]
        site = chosen["site"] or recommended.get("site") or "post"
        lam = _number(chosen["lam"] if chosen["lam"] is not None else recommended.get("lam", 0.0))
        mode = chosen["mode"] or "live"
        if norm not in NORMS:
            raise GateError(f"unknown norm {norm!r}: expected one of {', '.join(NORMS)}")
        if mode not in MODES:
            raise GateError(f"unknown mode {mode!r}: expected one of {', '.join(MODES)}")
        check_site(site)
        numbers = parse_layers(recommended.get("layers") if chosen["layers"] is None else chosen["layers"])
        return cls(source, artifact, seed, lam, norm, site, numbers, mode)

    @property
    def is_vanilla(self) -> bool:
        """True where nothing is gated: `scores=none`."""
        return self.scores is None and self.seed is None

    def gate(self, anatomy: AttentionLayout, model: str) -> Gate:
        """The gate for a model of this anatomy; `model` names it in messages."""
        if self.seed is not None:
            return random_gate(anatomy.shape, seed=self.seed, site=self.site, layers=self.layers)
        if self.scores is None:
            raise GateError("scores=none has no gate")
        self.scores.check_fits(anatomy.shape, model)
        probed = self.scores.metadata.get("site")
        if probed and probed != self.site:
            log.warning("the scores were probed at site=%s and gate site=%s", probed, self.site)
        return make_gate(self.scores, lam=self.lam, norm=self.norm, site=self.site, layers=self.layers)

    def apply(self, model: Any, name: str) -> GateHandle | None:
        """Gate a loaded model; returns the live gate's handle, or None (folded, or vanilla)."""
        if self.is_vanilla:
            return None
        anatomy = find_attention_layout(model)
        gate = self.gate(anatomy, name)
        log.info("gated %d layers x %d heads of %s: %s", *anatomy.shape, name, self.describe())
        if self.mode == "folded":
            fold(model, gate, anatomy=anatomy)
            return None
        return attach(model, gate, anatomy=anatomy)

    def describe(self) -> dict[str, Any]:
        """The gate's provenance, for a results file."""
        record: dict[str, Any] = {"scores": self.source, "truthgate_eval": __version__}
        if self.is_vanilla:
            return record
        record |= {"site": self.site, "mode": self.mode, "layers": self.layers and list(self.layers)}
        if self.scores is not None:
            record |= {"lam": self.lam, "norm": self.norm, "sha256": self.scores.fingerprint}
            names = ("model", "architecture", "task", "site")
            record |= {"probed": {name: self.scores.metadata.get(name) for name in names}}
        return record


def _recommended(artifact: TruthScores | None, modality: str) -> dict[str, Any]:
    recommended = artifact.metadata.get("recommended", {}) if artifact else {}
    return recommended if recommended.get("modality", "text") == modality else {}


def _source(scores: Any) -> tuple[TruthScores | None, int | None]:
    """(artifact, None), (None, seed of a random gate), or (None, None) for the vanilla model."""
    if isinstance(scores, TruthScores):
        return scores, None
    name = "none" if scores is None else str(scores)
    if name.lower() == "none":
        return None, None
    if name.startswith("random"):
        seed = name.removeprefix("random").removeprefix(":")
        if not seed.isdigit():
            raise GateError(f"scores={name}: a random gate needs a seed, as in scores=random:1")
        return None, int(seed)
    return TruthScores.resolve(name), None


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise GateError(f"lam={value} is not a number") from None
    if not math.isfinite(number):
        raise GateError(f"lam={value} is not a finite number")
    return number


def parse_layers(value: Any) -> tuple[int, ...] | None:
    """`8-15`, `3+8-15`, 8, [8, 9] or None, as sorted layer numbers.

    Raises:
        GateError: It is nothing like that.
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
