"""One of several processes: `python -m scripts.numerics.worker FOLDER SIZE`, with the size as JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from scripts.numerics.models import Models
from scripts.numerics.settings import DTYPES, TWO_PROCESSES, Results, Size


def main() -> None:
    """Run both models in these processes; the first one writes the results."""
    folder, size = sys.argv[1:]
    torch.set_num_threads(1)
    for dtype in DTYPES:
        found = Models(dtype, Size(**json.loads(size))).run_in_processes(TWO_PROCESSES)
        if found is not None:
            write(Path(folder), dtype, found)


def write(folder: Path, dtype: str, found: Results) -> None:
    """Write the results in a dtype for `read`."""
    np.save(folder / f"{dtype}.npy", found.activations)
    rest = {name: value for name, value in vars(found).items() if name != "activations"}
    (folder / f"{dtype}.json").write_text(json.dumps(rest), encoding="utf-8")


def read(folder: Path, dtype: str) -> Results:
    """The results that the first process has written."""
    activations = np.load(folder / f"{dtype}.npy", allow_pickle=False)
    rest = json.loads((folder / f"{dtype}.json").read_text(encoding="utf-8"))
    return Results(activations=activations, **rest)


def arguments(folder: Path, size: Size) -> list[str]:
    """The command line after `python`."""
    return ["-m", "scripts.numerics.worker", str(folder), json.dumps(asdict(size))]


if __name__ == "__main__":
    main()
