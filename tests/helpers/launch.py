"""Several processes of one program on the CPU, as `accelerate launch` and torchrun start them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


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


def nearly(value: Any) -> Any:
    """What another number of processes must give: batches of other sizes round otherwise.

    Numbers are to 1e-4, those that a harness has written as texts, too; compare `numbers(other) == nearly(one)`.
    """
    if isinstance(value, dict):
        return {key: nearly(own) for key, own in value.items()}
    if isinstance(value, list):
        return [nearly(own) for own in value]
    found = numbers(value)
    return pytest.approx(found, rel=1e-4, abs=1e-6) if isinstance(found, float) else found


def numbers(value: Any) -> Any:
    """A value of JSON with the numbers that are in it as texts."""
    if isinstance(value, dict):
        return {key: numbers(own) for key, own in value.items()}
    if isinstance(value, list):
        return [numbers(own) for own in value]
    try:
        return float(value) if isinstance(value, str | float) else value
    except ValueError:
        return value


def _run(
    command: list[str], cwd: Path, timeout: float, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    # One thread, so that one process and several compute alike.
    own = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(
        command, cwd=cwd, env=own, capture_output=True, text=True, timeout=timeout, check=False
    )
