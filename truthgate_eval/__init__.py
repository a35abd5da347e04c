"""Find the attention heads that tell truth from hallucination, and gate them."""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from truthgate_eval.errors import TruthGateError
    from truthgate_eval.gating.attention_layout import find_attention_layout
    from truthgate_eval.gating.gate import Gate, GateHandle, attach, fold, make_gate, normalize, random_gate
    from truthgate_eval.gating.scores import TruthScores
    from truthgate_eval.probing.cross_validation import ProbeResult, cross_validate_heads
    from truthgate_eval.probing.run import run_probing

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
    "find_attention_layout": "gating.attention_layout",
    "fold": "gating.gate",
    "make_gate": "gating.gate",
    "normalize": "gating.gate",
    "cross_validate_heads": "probing.cross_validation",
    "run_probing": "probing.run",
    "random_gate": "gating.gate",
}
__all__ = [
    "Gate",
    "GateHandle",
    "ProbeResult",
    "TruthGateError",
    "TruthScores",
    "attach",
    "cross_validate_heads",
    "find_attention_layout",
    "fold",
    "make_gate",
    "normalize",
    "random_gate",
    "run_probing",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
