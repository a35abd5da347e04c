"""Outputs on a full disk, and in a folder that is read-only."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from scripts.faults.commands import Disturbed, check_arrays, check_metadata
from scripts.faults.processes import FaultError
from scripts.faults.signals import Tally

_KIB = 1024
_LARGE = 16 << 20  # bytes of a checkpoint's weights, in which no date is looked for
# Dates in what an export, a data set or a report says of itself.
_DATE = re.compile(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d[+\d:]*")


class Output(Disturbed):
    """A command whose result is one file, or a folder, in the folder where it runs."""

    def __init__(
        self,
        work: Path,
        name: str,
        arguments: Sequence[str],
        result: str,
        *,
        environment: Mapping[str, str] | None = None,
        model: str = "tiny",
    ) -> None:
        """Run it undisturbed.

        Args:
            work: A folder of its own.
            name: Its name in the table.
            arguments: Those after `truthgate`.
            result: What it makes, relative to the folder where it runs.
            environment: Variables beside this process's own.
            model: What the table calls its model.
        """
        self.name, self.arguments, self._result, self.model = name, arguments, result, model
        self._environment = environment or {}
        super().__init__(work, times=1)

    def run(self, folder: Path, **options: Any) -> Any:
        """As in `Disturbed`."""
        return super().run(folder, environment=self._environment, **options)

    def check_after_fault(self, folder: Path) -> bool:
        """As in `Disturbed`; an empty folder is no result."""
        path = folder / self._result
        if not path.exists() or (path.is_dir() and not _contents(path)):
            return False
        self.check_content(folder)
        return True

    def check_content(self, folder: Path) -> None:
        """As in `Disturbed`; dates may differ."""
        ours, theirs = _contents(folder / self._result), _contents(self.expected / self._result)
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                raise FaultError(f"{name} of the result differs")
        if self._result.endswith(".npz"):
            check_arrays(folder / self._result, self.expected / self._result)
            check_metadata(folder / self._result, self.expected / self._result)


def _contents(path: Path) -> dict[str, str]:
    """Digests of the files at or below a path; of an .npz, whose metadata have a date, the name alone."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return {str(file.relative_to(path)): "" if file.suffix == ".npz" else _digest(file) for file in files}


def _digest(file: Path) -> str:
    content = file.read_bytes()
    if len(content) < _LARGE:
        content = _DATE.sub(b"DATE", content)
    return hashlib.sha256(content).hexdigest()


class Disk:
    """A small tmpfs.

    Attributes:
        folder: Where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def mounted(self, size: int) -> Iterator[None]:
        """Mount it, empty, with so many bytes."""
        self.folder.mkdir(exist_ok=True)
        _system("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(self.folder))
        try:
            yield
        finally:
            _system("umount", "-l", str(self.folder))

    def leave(self, free: int) -> None:
        """Fill it, but for so many bytes."""
        status = os.statvfs(self.folder)
        with (self.folder / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, status.f_bavail * status.f_frsize - free))

    def clear(self) -> None:
        """Make space again."""
        (self.folder / "filler").unlink()


def can_mount(work: Path) -> bool:
    """Whether this user may mount a tmpfs here."""
    try:
        with Disk(work / "try").mounted(1 << 20):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def fill(command: Disturbed, disk: Disk, size: int, free: Sequence[int]) -> Tally:
    """Run a command on a full disk, once for each amount of space; then make space, and run it again.

    Args:
        command: The command; it runs in a folder of the disk.
        disk: The disk.
        size: Bytes of the disk.
        free: Bytes that are left each time.
    """
    tally = Tally(f"full disk: `{command.name}`", command.model)
    for left in free:
        with disk.mounted(size):
            folder = disk.folder / "work"
            command.prepare(folder)
            disk.leave(left)
            failure = _failure(partial(_on_a_full_disk, command, folder, disk, tally))
        tally.add(f"{left // _KIB} KiB left", failure)
    return tally


def _on_a_full_disk(command: Disturbed, folder: Path, disk: Disk, tally: Tally) -> None:
    ended = command.run(folder)
    if ended.status == 0:
        command.check(folder)
        tally.see("enough was left")
        return
    tally.see("one line")
    tally.lines.append(ended.require_one_line())
    if command.check_after_fault(folder) and isinstance(command, Output):
        raise FaultError("an error, and a result")
    _check_nothing_temporary(folder)
    disk.clear()
    command.run(folder).require_success()
    command.check(folder)


def make_read_only(command: Disturbed, work: Path) -> Tally:
    """Run a command in a folder that is mounted read-only; then make it writable, and run it again."""
    tally = Tally(f"read-only folder: `{command.name}`", command.model)
    folder = work / "read-only"
    shutil.rmtree(folder, ignore_errors=True)
    command.prepare(folder)
    before = sorted(folder.rglob("*"))

    def check() -> None:
        with _read_only(folder):
            ended = command.run(folder)
        tally.lines.append(ended.require_one_line())
        tally.see("one line")
        if sorted(folder.rglob("*")) != before:
            raise FaultError("something was written")
        command.run(folder).require_success()
        command.check(folder)

    tally.add("read-only", _failure(check))
    return tally


@contextmanager
def _read_only(folder: Path) -> Iterator[None]:
    """Mount a folder on itself, read-only; file modes would not stop root."""
    _system("mount", "--bind", str(folder), str(folder))
    try:
        _system("mount", "-o", "remount,ro,bind", str(folder))
        yield
    finally:
        _system("umount", "-l", str(folder))


def _check_nothing_temporary(folder: Path) -> None:
    left = [path.name for path in folder.rglob(".*") if not path.name.endswith(".lock")]
    if left:
        raise FaultError(f"left beside the result: {left}")


def _failure(check: Callable[[], object]) -> str | None:
    try:
        check()
    except FaultError as error:
        return str(error)
    return None


def _system(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def make_outputs(work: Path, *, model: str, artifact: Path) -> list[Output]:
    """The commands that write one file or folder, and need little time.

    Args:
        work: A folder of their own.
        model: A tiny model's folder.
        artifact: Its truth scores.
    """
    images = work / "images"
    images.mkdir()
    annotations = work / "annotations.jsonl"
    _draw_images(images, annotations)
    gate = f"pretrained={model},scores={artifact},lam=2,norm=minmax"
    poll = ["data", "poll", "--images", str(images), "--annotations", str(annotations), "--out", "data"]
    folder = work / "undisturbed"
    return [
        Output(folder, "import", ["import", str(artifact), "-o", "b.npz", "--task", "t"], "b.npz"),
        Output(folder, "show --plot", ["show", str(artifact), "--plot", "a.png"], "a.png"),
        Output(folder, "report", ["report", f"a={artifact}", "-o", "a.html"], "a.html"),
        Output(folder, "data poll", poll, "data/poll"),
        Output(folder, "export --format peft", ["export", "-o", "out", "--model_args", gate], "out"),
        Output(
            folder, "export --format checkpoint",
            ["export", "-o", "out", "--format", "checkpoint", "--model_args", gate], "out",
        ),
    ]  # fmt: skip


def _draw_images(folder: Path, annotations: Path) -> None:
    import numpy as np
    from PIL import Image

    rng, lines = random.Random(0), []
    for number in range(40):
        noise = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
        objects = rng.sample(["dog", "cat", "car", "tree", "cup", "bird", "boat", "lamp"], 3)
        lines.append(json.dumps({"image": f"{number}.png", "objects": objects}))
    annotations.write_text("\n".join(lines))
