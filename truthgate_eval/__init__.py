"""Find the attention heads that tell truth from hallucination, and gate them.

The public names are listed in `__all__` and loaded when they are first used: lm-eval and lmms-eval import
this package at their start, which must not wait for torch.
"""

from __future__ import annotations

import importlib
import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from truthgate_eval.errors import TruthGateError
    from truthgate_eval.gating.attention_layout import AttentionLayout, find_attention_layout
    from truthgate_eval.gating.gate import Gate, GateHandle, attach, fold, make_gate, random_gate
    from truthgate_eval.gating.gate_config import GateConfig
    from truthgate_eval.gating.normalization import normalize
    from truthgate_eval.gating.scores import TruthScores
    from truthgate_eval.probing.config import CaptureConfig, ProbeConfig
    from truthgate_eval.probing.cross_validation import ProbeResult, cross_validate_heads
    from truthgate_eval.probing.dataset import TokenizedDataset
    from truthgate_eval.probing.run import run_probing

__version__ = version("truthgate_eval")

__all__ = [
    "AttentionLayout",
    "CaptureConfig",
    "Gate",
    "GateConfig",
    "GateHandle",
    "ProbeConfig",
    "ProbeResult",
    "TokenizedDataset",
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

_MODULES = {
    "AttentionLayout": "gating.attention_layout",
    "CaptureConfig": "probing.config",
    "Gate": "gating.gate",
    "GateConfig": "gating.gate_config",
    "GateHandle": "gating.gate",
    "ProbeConfig": "probing.config",
    "ProbeResult": "probing.cross_validation",
    "TokenizedDataset": "probing.dataset",
    "TruthGateError": "errors",
    "TruthScores": "gating.scores",
    "attach": "gating.gate",
    "cross_validate_heads": "probing.cross_validation",
    "find_attention_layout": "gating.attention_layout",
    "fold": "gating.gate",
    "make_gate": "gating.gate",
    "normalize": "gating.normalization",
    "random_gate": "gating.gate",
    "run_probing": "probing.run",
}

# Names of earlier versions, with those that replace them; kept for one release. The settings of `probe_heads`
# and `probe_model` are a `ProbeConfig` now.
_DEPRECATED = {
    "find_anatomy": "find_attention_layout",
    "normalise": "normalize",
    "probe_heads": "cross_validate_heads",
    "probe_model": "run_probing",
}


def __getattr__(name: str) -> Any:
    if name in _DEPRECATED:
        replacement = _DEPRECATED[name]
        warnings.warn(
            f"truthgate_eval.{name} is deprecated and will be removed: use truthgate_eval.{replacement}",
            DeprecationWarning,
            stacklevel=2,
        )
        name = replacement
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
