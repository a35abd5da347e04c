"""Prepared data sets: Parquet files in a folder below the data folder, with their provenance.

    $TRUTHGATE_DATA/pope/coco_random.parquet, ..., prepared.json, missing_pictures.txt

Pictures stay where they are: a row has the absolute path of its picture. `prepared.json` says what the
set was made from and what was left out.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from truthgate_eval import __version__
from truthgate_eval.data.images import describe_missing
from truthgate_eval.errors import DataError
from truthgate_eval.paths import data_dir

MISSING, PROVENANCE = "missing_pictures.txt", "prepared.json"

# What to type for each data set when it is not there.
COMMANDS = {
    "pope": "truthgate data pope --questions DIR --images DIR",
    "poll": "truthgate data poll --images DIR --annotations FILE",
    "phd": "truthgate data phd --json data.json --images DIR",
    "rlhf_v": "truthgate data rlhf-v",
    "minimal_pairs": "truthgate data minimal-pairs",
    "halueval": "truthgate data halueval DIR",
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """A data set that has been written.

    Attributes:
        folder: Where it is.
        files: Each file's name and its number of rows.
        missing: Names of pictures that were not found; their rows were left out.
        notes: What else a user should know, a sentence each.
    """

    folder: Path
    files: dict[str, int]
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def prepared_file(name: str, *, data: Path | None = None) -> Path:
    """The file of a prepared data set, such as `pope/coco_random`.

    Raises:
        DataError: It has not been made; the message has the command that makes it.
    """
    path = (data or data_dir()) / f"{name}.parquet"
    if path.is_file():
        return path
    command = COMMANDS.get(name.split("/")[0])
    how = f"make it with `{command}`" if command else "no command makes a data set of that name"
    raise DataError(f"the data set {name} is not prepared: no file {path}; {how}, or set TRUTHGATE_DATA")


def read_rows(path: Path) -> list[Row]:
    """The rows of a prepared file.

    Raises:
        DataError: It is missing, or is not Parquet.
    """
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        raise DataError(f"no file {path}")
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a Parquet file that can be read: {error}") from error


def write_set(
    folder: Path,
    files: Mapping[str, Sequence[Row]],
    *,
    source: Mapping[str, Any],
    missing: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> Prepared:
    """Write a data set; no file of an older one is touched before all new ones are complete.

    Args:
        folder: Made if it is not there.
        files: Rows by file name, without the suffix.
        source: What the set was made from, for `prepared.json`.
        missing: Names of pictures that were not found.
        notes: Sentences about what was left out.
    """
    import pyarrow
    import pyarrow.parquet

    for name, rows in files.items():
        if not rows:
            raise DataError(f"{folder.name}/{name} would be empty: nothing was written")
    counts = {name: len(rows) for name, rows in files.items()}
    with replacing(folder) as partial:
        for name, rows in files.items():
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), partial / f"{name}.parquet")
        if missing:
            (partial / MISSING).write_text("".join(f"{name}\n" for name in missing), encoding="utf-8")
        else:
            (folder / MISSING).unlink(missing_ok=True)
        provenance = {
            "truthgate_eval": __version__,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "source": dict(source),
            "rows": counts,
            "missing_pictures": len(missing),
            "notes": list(notes),
        }
        (partial / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    return Prepared(folder, counts, list(missing), list(notes))


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder whose content moves into `folder` when the block ends well."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder, prefix=".partial."))
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror or error}") from error
    try:
        yield partial
        for path in sorted(partial.iterdir()):
            target = folder / path.name
            if target.is_dir():  # os.replace does not replace a folder that has content
                shutil.rmtree(target)
            os.replace(path, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def require_pictures(
    found: Mapping[str, Path],
    missing: Sequence[str],
    folders: Sequence[Path],
    *,
    allow_missing: bool,
    report_to: Path,
) -> None:
    """Refuse to go on with missing pictures unless that is allowed, and never with none at all.

    The full list of the missing is written to a file in `report_to` before the refusal.

    Raises:
        DataError: Pictures are missing.
    """
    if not missing or (allow_missing and found):
        return
    with replacing(report_to) as partial:
        (partial / MISSING).write_text("".join(f"{name}\n" for name in missing), encoding="utf-8")
    hint = "; --allow-missing leaves their questions out" if found else ", so none of them was found"
    raise DataError(f"{describe_missing(missing, folders)} (all in {report_to / MISSING}){hint}")


def with_paths(rows: Iterable[Row], found: Mapping[str, Path]) -> list[Row]:
    """The rows whose picture was found, each with its `image_path`."""
    return [{**row, "image_path": str(found[row["image"]])} for row in rows if row["image"] in found]


def sha256(path: Path) -> str:
    """A file's hash, for the provenance."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def read_json_lines(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Line numbers and records of a JSON lines file, each checked to have the needed names.

    Raises:
        DataError: The file cannot be read, or a line is not such a record.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error.msg}") from error
        missing = [name for name in needed if not isinstance(record, dict) or name not in record]
        if missing:
            raise DataError(f"{path}, line {number}: no {', '.join(missing)}")
        yield number, record
