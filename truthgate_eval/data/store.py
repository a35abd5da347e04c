"""Prepared data sets: Parquet files in a folder below the data folder, with their provenance.

    $TRUTHGATE_DATA/pope/coco_random.parquet, ..., prepared.json, missing_pictures.txt

Pictures stay where they are: a row has the absolute path of its picture. `prepared.json` says what the
set was made from and what was left out.
"""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from truthgate_eval import __version__
from truthgate_eval.data.images import describe_missing
from truthgate_eval.errors import DataError
from truthgate_eval.files import replace_folder
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
class PreparedDataset:
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


def write_dataset(
    folder: Path,
    files: Mapping[str, Sequence[Row]],
    *,
    source: Mapping[str, Any],
    missing: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> PreparedDataset:
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
    with replace_folder(folder) as partial:
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
    return PreparedDataset(folder, counts, list(missing), list(notes))


def require_images(
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
    with replace_folder(report_to) as partial:
        (partial / MISSING).write_text("".join(f"{name}\n" for name in missing), encoding="utf-8")
    hint = "; --allow-missing leaves their questions out" if found else ", so none of them was found"
    raise DataError(f"{describe_missing(missing, folders)} (all in {report_to / MISSING}){hint}")


def add_image_paths(rows: Iterable[Row], found: Mapping[str, Path]) -> list[Row]:
    """The rows whose picture was found, each with its `image_path`."""
    return [{**row, "image_path": str(found[row["image"]])} for row in rows if row["image"] in found]


def copy_into_dataset(source: Path, target: Path) -> None:
    """Copy a released file into a prepared data set's folder, whole or not at all."""
    if target.exists() and source.samefile(target):
        return
    with replace_folder(target.parent) as partial:
        shutil.copyfile(source, partial / target.name)
