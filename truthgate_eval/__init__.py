"""Find the attention heads that tell truth from hallucination, and gate them."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from truthgate_eval.errors import TruthGateError
    from truthgate_eval.gating.attention_layout import find_anatomy
    from truthgate_eval.gating.gate import Gate, GateHandle, attach, fold, make_gate, normalise, random_gate
    from truthgate_eval.gating.scores import TruthScores
    from truthgate_eval.probing.cross_validation import ProbeResult, probe_heads
    from truthgate_eval.probing.run import probe_model

__version__ = version("truthgate_eval")

# Where each public name lives. Loaded when first used: a host reads our entry points at its
# start, and must not wait for torch.
_HOMES = {
    "Gate": "gating.gate",
    "GateHandle": "gating.gate",
    "ProbeResult": "probing.cross_validation",
    "TruthGateError": "errors",
    "TruthScores": "gating.scores",
    "attach": "gating.gate",
    "find_anatomy": "gating.attention_layout",
    "fold": "gating.gate",
    "make_gate": "gating.gate",
    "normalise": "gating.gate",
    "probe_heads": "probing.cross_validation",
    "probe_model": "probing.run",
    "random_gate": "gating.gate",
}
__all__ = [
    "Gate",
    "GateHandle",
    "ProbeResult",
    "TruthGateError",
    "TruthScores",
    "attach",
    "find_anatomy",
    "fold",
    "make_gate",
    "normalise",
    "probe_heads",
    "probe_model",
    "random_gate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
