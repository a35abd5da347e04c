"""`python -m benchmarks NAME [--quick]` compares; `python -m benchmarks table` writes docs/performance.md."""

from __future__ import annotations

import argparse
import os
import sys

NAMES = ("capture", "halueval_generate", "halueval_loglikelihood", "probes", "gate_cost")


def main() -> None:
    """Pin this process to one core before torch is imported, then run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=[*NAMES, "table"])
    parser.add_argument("--quick", action="store_true", help="few documents and one round: does it run?")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs (default 3)")
    arguments = parser.parse_args()
    if arguments.name == "table":
        from benchmarks.table import write

        print(write())
        return
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import importlib

    module = importlib.import_module(f"benchmarks.{arguments.name.split('_')[0]}")
    for result in module.run(
        arguments.name, quick=arguments.quick, rounds=1 if arguments.quick else arguments.rounds
    ):
        print(result.save(quick=arguments.quick))
        print(result.line())
        if not result.check["passed"]:
            sys.exit(f"{arguments.name}: the outputs differ: {result.check}")


if __name__ == "__main__":
    main()
