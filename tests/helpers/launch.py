"""Several processes of one program on the CPU, as `accelerate launch` and torchrun start them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def launch(
    *arguments: str, cwd: Path, processes: int = 2, timeout: float = 600, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in two processes on the CPU; `-m MODULE` and scripts both work.

    A run that hangs is ended after `timeout` seconds and raises `subprocess.TimeoutExpired`.
    """
    command = [
        # With --cpu accelerate starts one process, whatever their number.
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes),
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
        *arguments,
    ]  # fmt: skip
    return _run(command, cwd, timeout, environment)


def torchrun(
    *arguments: str, cwd: Path, processes: int = 2, timeout: float = 600, **environment: str
) -> subprocess.CompletedProcess[str]:
    """As `launch`, by torchrun alone."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), *arguments,
    ]  # fmt: skip
    return _run(command, cwd, timeout, environment)


def _run(
    command: list[str], cwd: Path, timeout: float, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    # One thread, so that one process and several compute alike.
    own = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(
        command, cwd=cwd, env=own, capture_output=True, text=True, timeout=timeout, check=False
    )
