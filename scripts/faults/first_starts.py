"""Several first starts at once, on a cache and a data folder that are empty."""

from __future__ import annotations

from pathlib import Path

from scripts.faults.commands import check_arrays, write_often
from scripts.faults.processes import Command, FaultError
from scripts.faults.signals import Tally

WAITS = "waiting for another process that is writing"


def start_at_once(count: int, work: Path) -> tuple[Tally, Path]:
    """Probe the packaged vision child in several processes: it needs both conversions, and the scenes.

    Args:
        count: How many processes.
        work: A folder for the cases.

    Returns:
        What was seen, and the cache that they have made.
    """
    tally = Tally(f"{count} first starts of `probe` at once", "smollm2-135m-scenes")
    folder = work / f"starts-{count}"
    folder.mkdir()
    environment = {"TRUTHGATE_CACHE": str(folder / "cache"), "TRUTHGATE_DATA": str(folder / "data")}
    running = [
        Command(
            ["probe", "--model", "vlm", "--model_args", "pretrained=smollm2-135m-scenes",
             "--tasks", "probe_scenes", "--limit", "6", "--folds", "1", "--solver", "newton",
             "--device", "cpu", "-o", f"{number}.npz"],
            folder, environment=environment, before=write_often,
        )
        for number in range(count)
    ]  # fmt: skip
    ended = [command.wait() for command in running]
    for number, one in enumerate(ended):
        if WAITS in one.err:
            tally.see("waited, and said so")
        try:
            one.require_success()
            check_arrays(folder / f"{number}.npz", folder / "0.npz")
            failure = None
        except FaultError as error:
            failure = str(error)
        tally.add(f"start {number}", failure)
    if not tally.observed:
        tally.failures.append("nobody said that it waited")
        tally.survived = 0
    return tally, folder / "cache"
