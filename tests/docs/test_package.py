from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import truthgate_eval


def test_every_public_name_is_there_and_is_no_module() -> None:
    assert truthgate_eval.__all__ == sorted(truthgate_eval.__all__)
    for name in truthgate_eval.__all__:
        assert not isinstance(getattr(truthgate_eval, name), ModuleType), name


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, truthgate_eval; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_core_imports_no_host() -> None:
    code = """
import sys
from truthgate_eval.gating import gate
from truthgate_eval.gating import scores
from truthgate_eval.gating import attention_layout as anatomy
from truthgate_eval.probing import capture
from truthgate_eval.probing import cross_validation as probe
from truthgate_eval.probing import run as probing
from truthgate_eval.gating import gate_config as settings
from truthgate_eval.data import halueval
from truthgate_eval.data import phd
from truthgate_eval.metrics import yes_no as judgement
print([name for name in sys.modules if name.split(".")[0] in ("lm_eval", "lmms_eval")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
