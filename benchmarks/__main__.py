"""`python -m benchmarks NAME [--quick]` runs a comparison, `all` every one; `table` writes the tables."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from typing import Any

# Each benchmark, and the module that runs it.
MODULES = {
    "capture": "capture",
    "capture_images": "capture_images",
    "halueval_generate": "halueval",
    "halueval_loglikelihood": "halueval",
    "probes": "probes",
    "gate_cost": "gate",
    "gate_cost_compiled": "gate",
    "sweep": "sweep",
    "memory": "memory",
    "linear": "linear",
    "pope": "pope",
    "pope_duplicates": "pope",
    "pope_batch8": "pope",
    "scenes": "scenes",
    "gradient": "gradient",
    "study": "study",
}
NAMES = tuple(MODULES)


def main() -> None:
    """Pin this process to one core before torch is imported, then run the benchmark."""
    arguments = parse()
    if arguments.name == "table":
        from benchmarks.table import write

        print(write())
        return
    prepare(arguments.device)
    if arguments.name == "all":
        run_all(arguments)
    else:
        run_one(arguments.name, arguments)


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=[*NAMES, "all", "table"])
    parser.add_argument("--quick", action="store_true", help="few documents and one round: does it run?")
    parser.add_argument(
        "--rounds", type=int, help="how often each side runs (default 3; 2 with `all --device cuda`)"
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="cuda: a 7B shape in bfloat16"
    )
    parser.add_argument(
        "--minutes", type=float, help="with all: the time for all (default 8 with cuda, else no limit)"
    )
    return parser.parse_args(given)


def prepare(device: str) -> None:
    """One thread, one core, no hub: before torch is imported."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # memory is measured in a fork
    if device == "cpu" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def run_all(arguments: argparse.Namespace) -> None:
    """Run what fits; end with a status other than 0 and the names where some have failed."""
    from benchmarks.suite import GPU_MINUTES, run_all

    free_gib, minutes = None, arguments.minutes
    if arguments.device == "cuda":
        require_gpu()
        import torch

        free_gib = torch.cuda.mem_get_info()[0] / 2**30
        minutes = GPU_MINUTES if minutes is None else minutes
        arguments.rounds = arguments.rounds or 2
    failed = run_all(
        NAMES, functools.partial(run_one, arguments=arguments), free_gib=free_gib, minutes=minutes
    )
    if failed:
        lines = [f"{name}: {reason}" for name, reason in failed.items()]
        sys.exit("\n".join([f"{len(failed)} benchmarks have failed:", *lines]))


def run_one(name: str, arguments: argparse.Namespace) -> None:
    """Run a benchmark; print its results and write each when it is there."""
    import importlib

    module: Any = importlib.import_module(f"benchmarks.{MODULES[name]}")
    options = {"quick": arguments.quick, "rounds": 1 if arguments.quick else arguments.rounds or 3}
    if arguments.device == "cuda":
        if "cuda" not in getattr(module, "DEVICES", ("cpu",)):
            sys.exit(f"{name}: this benchmark has no GPU variant; run it without --device cuda")
        require_gpu()
        options["device"] = arguments.device
    for result in module.run(name, **options):
        print(result.save(quick=arguments.quick))
        print(result.line(), flush=True)
        if not result.check["passed"]:
            sys.exit(f"{name}: the outputs differ: {result.check}")


def require_gpu() -> None:
    """End with one line unless there is a GPU."""
    import torch

    if not torch.cuda.is_available():
        sys.exit(
            "--device cuda: torch sees no GPU on this machine; run without it, or on a machine that has one"
        )


if __name__ == "__main__":
    main()
