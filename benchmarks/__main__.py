"""`python -m benchmarks NAME [--quick]` runs a comparison; `python -m benchmarks table` writes the tables."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

NAMES = (
    "capture",
    "halueval_generate",
    "halueval_loglikelihood",
    "probes",
    "gate_cost",
    "sweep",
    "memory",
    "linear",
    "pope",
    "pope_duplicates",
    "pope_batch8",
    "scenes",
    "gradient",
    "study",
)


def main() -> None:
    """Pin this process to one core before torch is imported, then run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=[*NAMES, "table"])
    parser.add_argument("--quick", action="store_true", help="few documents and one round: does it run?")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs (default 3)")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="cuda: a 7B shape in bfloat16"
    )
    arguments = parser.parse_args()
    if arguments.name == "table":
        from benchmarks.table import write

        print(write())
        return
    device = arguments.device
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # memory is measured in a fork
    if device == "cpu" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import importlib

    module = importlib.import_module(f"benchmarks.{arguments.name.split('_')[0]}")
    options = {"quick": arguments.quick, "rounds": 1 if arguments.quick else arguments.rounds}
    if device == "cuda":
        require_gpu(arguments.name, module)
        options["device"] = device
    for result in module.run(arguments.name, **options):
        print(result.save(quick=arguments.quick))
        print(result.line())
        if not result.check["passed"]:
            sys.exit(f"{arguments.name}: the outputs differ: {result.check}")


def require_gpu(name: str, module: Any) -> None:
    """End with one line unless there is a GPU and the benchmark knows what to do with it."""
    import torch

    if "cuda" not in getattr(module, "DEVICES", ("cpu",)):
        sys.exit(f"{name}: this benchmark has no GPU variant; run it without --device cuda")
    if not torch.cuda.is_available():
        sys.exit(
            "--device cuda: torch sees no GPU on this machine; run without it, or on a machine that has one"
        )


if __name__ == "__main__":
    main()
