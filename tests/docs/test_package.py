"""The package's public names: complete, loaded when first used, and without the harnesses."""

from __future__ import annotations

import subprocess
import sys
import warnings
from types import ModuleType

import pytest

import truthgate_eval


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_every_public_name_can_be_imported_and_is_no_module() -> None:
    assert truthgate_eval.__all__ == sorted(truthgate_eval.__all__)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in truthgate_eval.__all__:
            assert not isinstance(getattr(truthgate_eval, name), ModuleType), name
            assert name in dir(truthgate_eval)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("find_anatomy", "find_attention_layout"),
        ("normalise", "normalize"),
        ("probe_heads", "cross_validate_heads"),
        ("probe_model", "run_probing"),
    ],
)
def test_an_old_name_gives_the_new_one_with_a_deprecation_warning(old: str, new: str) -> None:
    with pytest.warns(
        DeprecationWarning, match=rf"truthgate_eval\.{old} is deprecated .* truthgate_eval\.{new}$"
    ):
        found = getattr(truthgate_eval, old)
    assert found is getattr(truthgate_eval, new)
    assert old not in truthgate_eval.__all__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'probe_tails'"):
        truthgate_eval.probe_tails  # noqa: B018


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, truthgate_eval; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert run_python(code).split() == ["False", "False"]


@pytest.mark.slow
def test_the_core_does_not_import_a_harness() -> None:
    code = """
import sys
import truthgate_eval.data.halueval
import truthgate_eval.data.phd
import truthgate_eval.data.splits
import truthgate_eval.gating.attention_layout
import truthgate_eval.gating.gate
import truthgate_eval.gating.gate_config
import truthgate_eval.gating.scores
import truthgate_eval.gating.sweep
import truthgate_eval.metrics.yes_no
import truthgate_eval.probing.capture
import truthgate_eval.probing.cross_validation
import truthgate_eval.probing.run
print([name for name in sys.modules if name.split(".")[0] in ("lm_eval", "lmms_eval")])
"""
    assert run_python(code).strip() == "[]"
