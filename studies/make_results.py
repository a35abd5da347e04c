"""Make docs/results.md's figures: truth scores of a family that fits in the package.

    python studies/make_results.py FOLDER [--quick] [--lanes N]

runs ordinary commands in FOLDER and goes on where it was interrupted; nothing that is there is run again. The page's
sections between comments are replaced, and their numbers are written to docs/results.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from results_numbers import collect
from results_plan import FULL, QUICK, SITES, stages
from results_run import StudyFolder
from results_tables import fill

from truthgate_eval.errors import TruthGateError
from truthgate_eval.files import write_atomic

DOCS = Path(__file__).resolve().parent.parent / "docs"


def main(arguments: list[str]) -> None:
    """Run what is missing, then write everything."""
    options = _parser().parse_args(arguments)
    sizes = QUICK if options.quick else FULL
    folder = StudyFolder(options.folder)
    done = folder.run(stages(sizes), processes=options.processes)
    sys.stdout.write(f"{len(done)} steps run\n")
    write(collect(sizes, folder), folder.folder, options.docs)


def write(results: dict[str, Any], folder: Path, docs: Path) -> None:
    """Write the page's parts, its data and its figures."""
    page = docs / "results.md"
    text = fill((page if page.is_file() else DOCS / "results.md").read_text(encoding="utf-8"), results)
    images = docs / "images"
    images.mkdir(parents=True, exist_ok=True)
    for site in SITES:
        shutil.copyfile(folder / f"matrix-{site}.png", images / f"results-matrix-{site}.png")
    write_atomic(docs / "results.json", (json.dumps(results, indent=1, allow_nan=False) + "\n").encode())
    write_atomic(page, text.encode())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make_results.py", description="Run the study and write its page.")
    parser.add_argument("folder", type=Path, help="where everything is kept")
    parser.add_argument("--quick", action="store_true", help="tiny limits: to see that everything runs")
    parser.add_argument(
        "--lanes", dest="processes", type=int, default=2, help="steps at a time, of one thread each"
    )
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the page, its data and figures go")
    return parser


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except TruthGateError as error:
        sys.exit(f"error: {error}")
