"""Measure, print and write docs/numerics.json; with --page, write the tables of docs/reliability.md.

uv run python -m scripts.numerics
uv run python -m scripts.numerics --page
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from scripts.numerics import page, worker
from scripts.numerics.models import Models
from scripts.numerics.settings import (
    DTYPES,
    PLAIN,
    QUICK,
    SETTINGS,
    TWO_PROCESSES,
    Results,
    Size,
    differences,
)

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from helpers.launch import launch


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", action="store_true", help="write the tables of the page and stop")
    parser.add_argument("--quick", action="store_true", help="a sixth of the documents")
    arguments = parser.parse_args()
    if arguments.page:
        page.write()
        return
    torch.set_num_threads(1)
    size, rows = QUICK if arguments.quick else Size(), []
    for row in measure(size):
        print(json.dumps(row), file=sys.stderr, flush=True)
        rows.append(row)
    versions = {name: version(name) for name in ("torch", "transformers", "lm_eval", "lmms_eval")}
    record = {
        "machine": f"{_processor()}, one thread", "versions": versions, "size": asdict(size),
        "cpu_minutes": round(sum(os.times()[:4]) / 60, 1), "rows": rows,
    }  # fmt: skip
    page.OUTPUT.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(page.tables(record))


def measure(size: Size) -> Iterator[dict[str, Any]]:
    """Yield the row of every setting in both dtypes, and that of the dtypes against each other."""
    plain: dict[str, Results] = {}
    for dtype in DTYPES:
        models = Models(dtype, size)
        plain[dtype] = models.run(PLAIN)
        for setting in SETTINGS:
            found = differences(models.run(setting), plain[dtype])
            yield {"dtype": dtype, "setting": str(setting), **found}
        del models
    both = differences(plain["bfloat16"], plain["float32"])
    yield {"dtype": "bfloat16", "setting": page.AGAINST_FLOAT32, **both}
    for dtype, in_processes in in_two_processes(size).items():
        found = differences(in_processes, plain[dtype])
        yield {"dtype": dtype, "setting": str(TWO_PROCESSES), **found}


def in_two_processes(size: Size) -> dict[str, Results]:
    """The results of two processes on this machine, by dtype."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        done = launch(*worker.arguments(folder, size), cwd=page.ROOT, timeout=3600)
        if done.returncode:
            sys.exit(f"two processes failed:\n{done.stderr[-3000:]}")
        return {dtype: worker.read(folder, dtype) for dtype in DTYPES}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
