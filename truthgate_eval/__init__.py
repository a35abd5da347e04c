"""Find the attention heads that tell truth from hallucination, and gate them."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from truthgate_eval.anatomy import find_anatomy
    from truthgate_eval.errors import TruthGateError
    from truthgate_eval.gate import Gate, GateHandle, attach, fold, make_gate, normalise, random_gate
    from truthgate_eval.probe import ProbeResult, probe_heads
    from truthgate_eval.probing import probe_model
    from truthgate_eval.scores import TruthScores

__version__ = version("truthgate_eval")

# Where each public name lives. Loaded when first used: a host reads our entry points at its
# start, and must not wait for torch.
_HOMES = {
    "Gate": "gate",
    "GateHandle": "gate",
    "ProbeResult": "probe",
    "TruthGateError": "errors",
    "TruthScores": "scores",
    "attach": "gate",
    "find_anatomy": "anatomy",
    "fold": "gate",
    "make_gate": "gate",
    "normalise": "gate",
    "probe_heads": "probe",
    "probe_model": "probing",
    "random_gate": "gate",
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
