"""Inject faults into real commands, and say which of them end as docs/reliability.md promises.

    python -m scripts.faults --write                 # 50 kills of a probe and of a sweep, and everything else
    python -m scripts.faults --only kills,inputs --kills 3 --tiny
    python -m scripts.faults --page                  # write the page's table anew, from docs/faults.json

Prints a table, and ends with status 1 where a promise does not hold. With --write each fault, when it is
done, goes into docs/faults.json and into the table of docs/reliability.md. Full disks and read-only folders
need a user who may mount; where that is not so, a line says what was left out, and the status is 2.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.faults.processes import ONE_THREAD, ROOT, import_everything

os.environ.update({**ONE_THREAD, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "200"})
sys.path[:0] = [str(ROOT / "tests")]

if TYPE_CHECKING:
    from scripts.faults.parts import Faults

PARTS = ("starts", "kills", "interrupts", "disks", "inputs")


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="of each of the two commands")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--only", help=f"some of the parts {','.join(PARTS)}")
    parser.add_argument("--tiny", action="store_true", help="a tiny random model, and no conversion")
    parser.add_argument("--write", action="store_true", help="the figures into docs/")
    parser.add_argument("--page", action="store_true", help="only write the table of docs/reliability.md")
    options = parser.parse_args()
    parts = options.only.split(",") if options.only else list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(unknown)}")
    from scripts.faults import page
    from scripts.faults.disks import can_mount
    from scripts.faults.parts import Faults

    if options.page:
        page.write_page()
        return
    work = Path(tempfile.mkdtemp(prefix="truthgate-faults-"))
    import_everything()
    records, failures, skipped = [], [], False
    try:
        faults = Faults(work, options.kills, options.seed, tiny=options.tiny)
        for part in parts:
            if part == "disks" and not can_mount(work):
                skipped = True
                continue
            for record in run_part(faults, part, failures):
                records.append(record)
                if options.write:
                    page.write_figures(_settings(options.seed), [record])
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"\n{page.make_table(records)}")
    print(f"{len(failures)} promises that do not hold", *failures, sep="\n")
    if skipped:
        print("NOT TRIED: full disks and read-only folders, since this user may not mount")
    sys.exit(1 if failures else 2 if skipped else 0)


def run_part(faults: Faults, part: str, failures: list[str]) -> Iterator[dict[str, Any]]:
    """The records of a part, each printed when it is known; what did not hold is added to `failures`."""
    from scripts.faults.page import make_record

    before = _minutes_on_processor()
    for tally in faults.part(part):
        failures += [f"{tally.fault}: {failure}" for failure in tally.failures]
        print(f"{tally.fault}: {tally.survived} of {tally.tried}; {tally.observed}", flush=True)
        for line in dict.fromkeys(line.replace(str(faults.work), "WORK") for line in tally.lines):
            print(f"  {line}", flush=True)
        now = _minutes_on_processor()
        yield make_record(tally, now - before)
        before = now


def _minutes_on_processor() -> float:
    """Of this process and of all commands that have ended."""
    return sum(os.times()[:4]) / 60


def _settings(seed: int) -> dict[str, Any]:
    packages = ("torch", "transformers", "lm_eval")
    versions = {"Python": platform.python_version()} | {name: version(name) for name in packages}
    return {"processor": _processor(), "versions": versions, "seed": seed}


def _processor() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(": ")[2] if names else platform.machine()


if __name__ == "__main__":
    main()
